/* run_plan: the plan needs no device; where there is one, its free memory is set against it. */
#include "experiments/run_plan.h"
#include "engine/err.h"
#include "engine/model_plan.h"
#include "experiments/config_whole.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static size_t free_bytes(const struct config *cfg)
{
    struct backend be = {.ops = NULL};
    const struct backend_opts opts = {.threads = 1, .isa = cfg->device.isa, .device = cfg->device.index};
    if (strcmp(cfg->device.kind, "cpu") == 0 || backend_open(&be, cfg->device.kind, &opts))
        return SIZE_MAX;
    const size_t room = be.ops->available(&be);
    backend_close(&be);
    return room;
}

static int is_here(const char *dir)
{
    char *path = NULL;
    if (asprintf(&path, "%s/config.json", dir) < 0)
        return 0;
    const int here = access(path, F_OK) == 0;
    free(path);
    return here;
}

int run_plan(const struct config *cfg, struct shard shard)
{
    const char *dir = cfg->model.synthetic[0] ? NULL : cfg->model.path;
    struct model_opts opts = config_numbers(cfg);
    struct model_config shape = {.vocab = 0};
    struct model_plan plan;
    if (dir && !is_here(dir)) {
        printf("model: '%s' has no config.json: nothing is known of what it would load\n", dir);
        return 0;
    }
    if (!dir)
        TRY(model_config_named(&shape, cfg->model.synthetic));
    opts.shard = shard;
    TRY_CTX(model_plan(&plan, cfg->device.kind, dir, &shape, &opts), "planning model '%s'",
            dir ? dir : cfg->model.synthetic);
    const int cells = cfg->model.max_context ? cfg->model.max_context + cfg->draft.max_nodes : 0;
    model_plan_print(&plan, shard, cfg->workload.concurrency, cells, free_bytes(cfg), stdout);
    return 0;
}

/* run_model: opening in the order that fails fastest: tokenizer and template before the weights. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "experiments/run_model.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/config_whole.h"
#include "experiments/git_commit.h" /* made by the build: SPECBED_GIT_COMMIT */
#include "experiments/record_file.h"
#include "experiments/record_meta.h"
#include <jansson.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <yaml.h>

static int load_weights(struct run_model *m, const struct config *cfg)
{
    const struct model_opts numbers = config_numbers(cfg);
    struct model_config shape;
    if (!cfg->model.synthetic[0])
        return model_load(&m->model, &m->be, cfg->model.path, &numbers);
    TRY(model_config_named(&shape, cfg->model.synthetic));
    return model_synthetic(&m->model, &m->be, &shape, (uint64_t)cfg->model.synthetic_seed, &numbers);
}

static int open_parts(struct run_model *m, const struct config *cfg)
{
    struct backend_opts device = {.threads = cfg->device.threads,
                                  .isa = cfg->device.isa,
                                  .device = cfg->device.index,
                                  .eager = !cfg->device.graph};
    int64_t start = clock_ns();
    if (cfg->model.path[0]) { /* else prompts are token ids */
        TRY(tokenizer_open(&m->tokenizer, cfg->model.path));
        TRY(chat_open(&m->chat, cfg->model.path, cfg->workload.template, m->tokenizer));
    }
    TRY(backend_open(&m->be, cfg->device.kind, &device));
    log_info("device: %s", m->be.device);
    TRY(load_weights(m, cfg));
    log_info("model: ready after %.2f s, %.1f MiB on the device, weights %016llx, template %s",
             1e-9 * (double)(clock_ns() - start), (double)m->be.allocated / (1 << 20),
             (unsigned long long)m->model.fingerprint, m->tokenizer ? chat_name(m->chat.kind) : "none");
    int ids = m->tokenizer ? tokenizer_vocab_size(m->tokenizer) : 0;
    if (ids > m->model.cfg.vocab)
        log_warn("model: the tokenizer knows %d ids, the model %d; a prompt with one of the others will fail",
                 ids, m->model.cfg.vocab);
    return 0;
}

/* All that open_parts reads of a configuration, malloc'ed; NULL: out of memory. */
static char *key_of(const struct config *cfg)
{
    char *key = NULL;
    if (asprintf(&key, "%s\n%s %ld %.17g\n%s %s %s\n%s %d\n%s %d %d\n%s", cfg->model.path, cfg->model.synthetic,
                 cfg->model.synthetic_seed, cfg->synthetic.expert_skew, cfg->model.weights, cfg->model.activations, cfg->model.kv,
                 cfg->device.kind, cfg->device.index, cfg->device.isa, cfg->device.threads, cfg->device.graph,
                 cfg->workload.template) < 0)
        return NULL;
    return key;
}

static const char *name_of(const struct config *cfg)
{
    return cfg->model.synthetic[0] ? cfg->model.synthetic : cfg->model.path;
}

int run_model_open(struct run_model *m, const struct config *cfg)
{
    char *key = key_of(cfg);
    if (!key)
        FAIL(ERR_MEMORY, "model '%s': out of memory", name_of(cfg));
    if (m->key && strcmp(m->key, key) == 0) {
        free(key);
        return 0;
    }
    run_model_close(m);
    m->key = key;
    int rc = open_parts(m, cfg);
    if (rc) {
        err_context("opening model '%s'", name_of(cfg));
        run_model_close(m);
    }
    return rc;
}

void run_model_close(struct run_model *m)
{
    model_deinit(&m->model);
    backend_close(&m->be);
    chat_close(&m->chat);
    tokenizer_close(m->tokenizer);
    free(m->key);
    *m = (struct run_model){0};
}

int run_model_context(const struct run_model *m, const struct config *cfg)
{
    int positions = m->model.cfg.max_positions, wanted = cfg->model.max_context;
    return wanted > 0 && wanted < positions ? wanted : positions;
}

static char *library_versions(void)
{
    char hdf5[48], pcre2[64] = "", *text = NULL;
    record_file_library(hdf5, sizeof hdf5);
    pcre2_config(PCRE2_CONFIG_VERSION, pcre2);
    pcre2[strcspn(pcre2, " ")] = 0;
    if (asprintf(&text, "%s, jansson %s, pcre2 %s, libyaml %s", hdf5, jansson_version_str(), pcre2,
                 yaml_get_version_string()) < 0)
        return NULL;
    return text;
}

static char *host_name(void)
{
    struct utsname u;
    char *text = NULL;
    if (uname(&u) || asprintf(&text, "%s %s %s", u.sysname, u.release, u.machine) < 0)
        return NULL;
    return text;
}

static char *model_name(const struct run_model *m, const struct config *cfg)
{
    const struct model_config *c = &m->model.cfg;
    char *text = NULL;
    if (asprintf(&text, "%s%s (%s, %d layers, hidden %d)", cfg->model.synthetic[0] ? "synthetic " : "",
                 name_of(cfg), c->architecture, c->layers, c->hidden) < 0)
        return NULL;
    return text;
}

int run_model_meta(const struct run_model *m, const struct config *cfg, const char *slice,
                   struct trace_meta *out)
{
    struct trace_meta meta = {.schema = TRACE_SCHEMA,
                              .status = strdup("running"),
                              .config = config_dump(cfg),
                              .version = strdup(SPECBED_VERSION),
                              .git_commit = strdup(SPECBED_GIT_COMMIT),
                              .build = strdup(SPECBED_BUILD),
                              .device = strdup(m->be.device),
                              .isa = strdup(m->be.isa),
                              .host = host_name(),
                              .libraries = library_versions(),
                              .threads = m->be.threads,
                              .fingerprint = m->model.fingerprint,
                              .model = model_name(m, cfg),
                              .started = record_meta_now(),
                              .ended = strdup(""),
                              .slice = strdup(slice),
                              .trace_level = strdup(cfg->trace.level)};
    for (const struct field *f = record_meta_fields; f->name; f++)
        if (f->kind == FIELD_TEXT && !*(char **)(void *)((char *)&meta + f->offset)) {
            trace_meta_deinit(&meta);
            FAIL(ERR_MEMORY, "out of memory while describing the run");
        }
    *out = meta;
    return 0;
}

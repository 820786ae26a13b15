/* run_model: opening in the order that fails fastest: tokenizer and template before the weights. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "experiments/run_model.h"
#include "engine/calibrate.h"
#include "engine/clock.h"
#include "engine/err.h"
#include "engine/log.h"
#include "experiments/config_whole.h"
#include "experiments/file.h"
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

/* A rank that does not answer for so long is taken for dead. */
enum { PATIENCE_S = 30 };

static int load_ranks(struct run_model *m, const struct config *cfg)
{
    struct model_config shape;
    struct ranks_model from = {.kind = cfg->device.kind,
                               .device = {.threads = cfg->device.threads,
                                          .isa = cfg->device.isa,
                                          .device = cfg->device.index,
                                          .eager = !cfg->device.graph},
                               .per_device = cfg->device.ranks_per_gpu,
                               .dir = cfg->model.synthetic[0] ? NULL : cfg->model.path,
                               .shape = &shape,
                               .seed = (uint64_t)cfg->model.synthetic_seed,
                               .opts = config_numbers(cfg)};
    if (!from.dir)
        TRY(model_config_named(&shape, cfg->model.synthetic));
    TRY(config_shard(cfg, &from.opts.shard.rank, &from.opts.shard.world));
    TRY(ranks_open(&m->ranks, cfg->device.world, &m->be, &m->model, PATIENCE_S));
    return ranks_load(m->ranks, &from);
}

static void log_load(const struct model_load *l)
{
    if (l->bytes == 0)
        return;
    log_info("model: %.1f MB of the checkpoint loaded in %.2f s, %.2f GB/s", 1e-6 * (double)l->bytes,
             l->seconds, 1e-9 * (double)l->bytes / l->seconds);
    if (l->readers > 0)
        log_info("model: %d thread%s reading ahead for %.2f s of that, the mean", l->readers,
                 l->readers == 1 ? " was" : "s were", l->read_seconds);
}

enum { CALIBRATION_BYTES = 1 << 24 };

struct calibration {
    const int *ids;
    int n;
};

/* Every rank measures what its own share multiplies. */
static int calibrate_rank(void *ctx, struct rank *rank)
{
    const struct calibration *text = ctx;
    return model_calibrate(rank->model, text->ids, text->n);
}

/* Static scales from the text that cfg names, where it names one. */
static int calibrate(struct run_model *m, const struct config *cfg)
{
    const char *path = cfg->model.calibration;
    char *text = NULL;
    size_t bytes = 0;
    int *ids = NULL, n = 0, cap = 0;
    if (!path[0])
        return 0;
    if (!m->tokenizer)
        FAIL(ERR_CONFIG,
             "model.calibration: '%s' is text, and there is no tokenizer: set model.path to a directory with "
             "one",
             path);
    int rc = file_read(path, CALIBRATION_BYTES, &text, &bytes);
    if (rc == 0)
        rc = tokenizer_encode(m->tokenizer, text, bytes, 0, &ids, &n, &cap);
    if (rc == 0)
        rc = ranks_do(m->ranks, calibrate_rank, &(struct calibration){ids, n});
    if (rc)
        err_context("measuring activations over '%s'", path);
    free(text);
    free(ids);
    return rc;
}

static int open_parts(struct run_model *m, const struct config *cfg)
{
    int64_t start = clock_ns();
    if (cfg->model.path[0]) { /* else prompts are token ids */
        TRY(tokenizer_open(&m->tokenizer, cfg->model.path));
        TRY(chat_open(&m->chat, cfg->model.path, cfg->workload.template, m->tokenizer));
    }
    TRY(load_ranks(m, cfg));
    log_info("device: %s", m->be.device);
    TRY(calibrate(m, cfg));
    log_info("model: ready after %.2f s, %.1f MiB on the device, weights %016llx, template %s",
             1e-9 * (double)(clock_ns() - start), (double)m->be.allocated / (1 << 20),
             (unsigned long long)m->model.fingerprint, m->tokenizer ? chat_name(m->chat.kind) : "none");
    log_load(&m->model.load);
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
    int rank = 0, world = 0;
    config_shard(cfg, &rank, &world); /* was checked when it was read */
    if (asprintf(&key, "%s\n%s %ld %.17g\n%s %s %s\n%s %d\n%s %d %d\n%d %d %d %d\n%s\n%s", cfg->model.path,
                 cfg->model.synthetic, cfg->model.synthetic_seed, cfg->synthetic.expert_skew,
                 cfg->model.weights, cfg->model.activations, cfg->model.kv, cfg->device.kind,
                 cfg->device.index, cfg->device.isa, cfg->device.threads, cfg->device.graph,
                 cfg->device.world, cfg->device.ranks_per_gpu, rank, world, cfg->workload.template,
                 cfg->model.calibration) < 0)
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
    ranks_close(m->ranks);
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
                              .trace_level = strdup(cfg->trace.level),
                              .load_bytes = m->model.load.bytes,
                              .ns_load = (int64_t)(1e9 * m->model.load.seconds),
                              .ns_read = (int64_t)(1e9 * m->model.load.read_seconds)};
    for (const struct field *f = record_meta_fields; f->name; f++)
        if (f->kind == FIELD_TEXT && !*(char **)(void *)((char *)&meta + f->offset)) {
            trace_meta_deinit(&meta);
            FAIL(ERR_MEMORY, "out of memory while describing the run");
        }
    *out = meta;
    return 0;
}

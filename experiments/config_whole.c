/* config_whole: checks across options, and the few questions that several places ask a configuration. */
#include "experiments/config_whole.h"
#include "drafts/drafts.h"
#include "engine/err.h"
#include <stdlib.h>
#include <string.h>

int config_scores(const struct config *c)
{
    return !strcmp(c->workload.mode, "score");
}

static enum model_numbers numbers(const char *word)
{
    return !strcmp(word, "fp8") ? MODEL_FP8 : MODEL_BF16;
}

struct model_opts config_numbers(const struct config *c)
{
    return (struct model_opts){.weights = numbers(c->model.weights),
                               .activations = numbers(c->model.activations),
                               .kv = numbers(c->model.kv),
                               .expert_skew = (float)c->synthetic.expert_skew};
}

int config_numbers_as_stored(const struct config *c)
{
    struct model_opts o = config_numbers(c);
    return o.weights == MODEL_BF16 && o.activations == MODEL_BF16 && o.kv == MODEL_BF16;
}

void config_describe(const struct config *c, FILE *out)
{
    const char *const kept[] = {c->model.weights, c->model.activations, c->model.kv}, *const what[] = {
                                                                                          "weights",
                                                                                          "activations",
                                                                                          "kv"};
    int n = 0;
    if (!config_scores(c)) {
        fputs(c->draft.strategy, out);
        return;
    }
    for (int i = 0; i < 3; i++)
        if (numbers(kept[i]) == MODEL_FP8)
            fprintf(out, "%s%s fp8", n++ ? ", " : "", what[i]);
    if (n == 0)
        fputs("bf16", out);
}

static int shard_number(const struct config *c, int i, int lo, int hi, int *out)
{
    char *end;
    const char *word = c->device.shard.items[i];
    const long v = strtol(word, &end, 10);
    if (end == word || *end || v < lo || v > hi)
        FAIL(ERR_CONFIG, "device.shard: expected %s as a whole number in [%d, %d], found '%.40s'",
             i ? "the world" : "the rank", lo, hi, word);
    *out = (int)v;
    return 0;
}

int config_shard(const struct config *c, int *rank, int *world)
{
    int r = 0, w = 1;
    if (c->device.shard.n != 0 && c->device.shard.n != 2)
        FAIL(ERR_CONFIG, "device.shard: expected [rank, world], found a list of %d", c->device.shard.n);
    if (c->device.shard.n == 2) {
        TRY(shard_number(c, 1, 1, 8, &w));
        TRY(shard_number(c, 0, 0, w - 1, &r));
    }
    *rank = r;
    *world = w;
    return 0;
}

int config_one_rank(const struct config *c)
{
    int rank, world;
    TRY(config_shard(c, &rank, &world));
    if (world > 1 || c->device.world > 1)
        FAIL(
            ERR_CONFIG,
            "device.%s: expected one rank, found %d: ranks are planned (run --dry-run) but not computed with",
            world > 1 ? "shard" : "world", world > 1 ? world : c->device.world);
    return 0;
}

static int check_device(const struct config *c)
{
    int rank, world;
    TRY(config_shard(c, &rank, &world));
    if (c->device.shard.n && c->device.world > 1)
        FAIL(
            ERR_CONFIG,
            "device.shard: one rank runs alone: expected device.world 1 beside it, found %d; set one of them",
            c->device.world);
    return 0;
}

static int check_model(const struct config *c)
{
    struct model_config shape;
    if (!c->model.path[0] && c->model.synthetic[0] && c->workload.stop.n > 0)
        FAIL(ERR_CONFIG,
             "workload.stop: expected no texts that end an answer, found %d: without a tokenizer there is no "
             "text; set model.path to a directory that has one",
             c->workload.stop.n);
    if (!c->model.path[0] && !c->model.synthetic[0])
        FAIL(ERR_CONFIG,
             "model.path: expected the directory of a model, found nothing; `specbed list models` "
             "shows those below ./models");
    if (c->model.synthetic[0])
        TRY_CTX(model_config_named(&shape, c->model.synthetic), "model.synthetic");
    if (numbers(c->model.activations) == MODEL_FP8 && numbers(c->model.weights) != MODEL_FP8)
        FAIL(
            ERR_CONFIG,
            "model.activations: fp8 activations are multiplied with fp8 weights: expected model.weights fp8, "
            "found %s; set model.weights to fp8, or model.activations to bf16",
            c->model.weights);
    return 0;
}

static int check_sampling(const struct config *c)
{
    int greedy = !strcmp(c->sampling.rule, "greedy"), relaxed = !strcmp(c->sampling.rule, "relaxed");
    if ((greedy || relaxed) && c->sampling.temperature > 0)
        FAIL(ERR_CONFIG,
             "sampling.temperature: rule %s takes the most probable token and reads no temperature; expected "
             "0, "
             "found %g; set it to 0, or sampling.rule to coupled or rejection",
             c->sampling.rule, c->sampling.temperature);
    return 0;
}

static int check_score(const struct config *c)
{
    if (!c->workload.answers[0])
        FAIL(
            ERR_CONFIG,
            "workload.answers: mode score judges answers that are there already: expected the result file of "
            "a run over the same prompts, found nothing; make one with workload.mode generate, and name it "
            "here");
    if (strcmp(c->draft.strategy, "none") != 0)
        FAIL(ERR_CONFIG,
             "draft.strategy: mode score drafts nothing: expected none, found %s; set it to none, or "
             "workload.mode to generate",
             c->draft.strategy);
    return 0;
}

int config_check_whole(const struct config *c)
{
    const struct draft_ops *draft = drafts_find(c->draft.strategy);
    TRY(check_model(c));
    TRY(check_device(c));
    TRY(check_sampling(c));
    if (config_scores(c))
        TRY(check_score(c));
    if (draft && (draft->needs & DRAFT_REFERENCE) && !c->draft.reference[0])
        FAIL(ERR_CONFIG,
             "draft.reference: strategy %s replays earlier outputs: expected the result file of a run over "
             "the same "
             "prompts, found nothing",
             c->draft.strategy);
    return 0;
}

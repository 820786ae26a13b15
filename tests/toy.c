/* toy: one shape for all suites, so that a number seen in one test means the same in another. */
#include "tests/toy.h"
#include "engine/err.h"
#include "engine/log.h"

struct model_config toy_config(void)
{
    return (struct model_config){.architecture = "LlamaForCausalLM",
                                 .vocab = TOY_VOCAB,
                                 .hidden = 64,
                                 .ffn = 96,
                                 .layers = 2,
                                 .heads = 4,
                                 .kv_heads = 2,
                                 .head_dim = 16,
                                 .max_positions = TOY_POSITIONS,
                                 .rms_eps = 1e-5f,
                                 .rope_theta = 10000};
}

int toy_open(struct toy *t, int threads)
{
    const struct backend_opts opts = {.threads = threads, .isa = "auto"};
    const struct model_config cfg = toy_config();
    *t = (struct toy){.model = {.be = NULL}};
    log_set_level(LOG_WARN);
    TRY(backend_open(&t->be, "cpu", &opts));
    int rc = model_synthetic(&t->model, &t->be, &cfg, TOY_SEED, NULL);
    if (rc)
        toy_close(t);
    return rc;
}

void toy_close(struct toy *t)
{
    model_deinit(&t->model);
    backend_close(&t->be);
}

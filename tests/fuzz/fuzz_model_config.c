/* fuzz_model_config: any bytes as a config.json. What is refused has a message and changes nothing; what is
 * read has shapes that divide, products that fit, and finite rotary frequencies. */
#include "engine/err.h"
#include "engine/model_config.h"
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(int ok)
{
    if (!ok)
        abort();
}

static void check_frequencies(const struct model_config *c)
{
    float *f = malloc((size_t)c->head_dim / 2 * sizeof *f);
    check(f != NULL);
    model_config_inv_freq(c, f);
    for (int j = 0; j < c->head_dim / 2; j++)
        check(isfinite(f[j]) && f[j] >= 0);
    free(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct model_config c = {.vocab = -1};
    err_clear();
    if (model_config_parse(&c, (const char *)data, n, "fuzz")) {
        check(*err_text() && c.vocab == -1);
        return 0;
    }
    check(c.vocab > 0 && c.hidden > 0 && c.layers > 0 && c.max_positions > 0);
    check(c.kv_heads > 0 && c.heads % c.kv_heads == 0);
    check(c.head_dim > 0 && c.head_dim % 16 == 0 && c.ffn > 0 && c.ffn % 16 == 0);
    check(((long)c.heads + 2L * c.kv_heads) * c.head_dim <= INT_MAX && 2L * c.ffn <= INT_MAX);
    check(c.rms_eps > 0 && c.rope_theta > 0 && c.architecture[0]);
    check(model_config_params(&c) > 0);
    check_frequencies(&c);
    return 0;
}

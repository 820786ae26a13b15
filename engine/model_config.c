/* model_config: only what the engine computes passes. A key that would change the numbers and is not computed
 * is refused by name, because a model that runs with the wrong formula still writes plausible text. */
#include "engine/model_config.h"
#include "engine/err.h"
#include "engine/json.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARCHITECTURE "LlamaForCausalLM"

/* Bounds that keep every product of two dimensions inside an int where kernels count in int. */
enum {
    VOCAB_MAX = 1 << 24,
    HIDDEN_MAX = 1 << 20,
    FFN_MAX = 1 << 24,
    LAYERS_MAX = 4096,
    HEADS_MAX = 4096,
    HEAD_DIM_MAX = 4096,
    POSITIONS_MAX = 1 << 28,
    LANES = 16 /* kernels work on sixteen outputs at a time */
};

static int get_dim(const json_t *o, const char *key, const char *what, long hi, const int *fallback, int *out)
{
    long value = 0, fall = fallback ? *fallback : 0;
    TRY(json_get_int(o, key, what, 1, hi, fallback ? &fall : NULL, &value));
    *out = (int)value;
    return 0;
}

/* lo > 0, so that what passes is positive as a float, too, and no power of it leaves the range of one. */
static int get_range(const json_t *o, const char *key, const char *what, double lo, double hi,
                     const double *fallback, float *out)
{
    double value = 0;
    TRY(json_get_double(o, key, what, fallback, &value));
    if (!(value >= lo && value <= hi))
        FAIL(ERR_FORMAT, "%s: '%s': expected a number from %g to %g, found %g", what, key, lo, hi, value);
    *out = (float)value;
    return 0;
}

static int check_architecture(struct model_config *c, const json_t *o, const char *what)
{
    const json_t *list = json_object_get(o, "architectures");
    const char *type = NULL, *name = NULL;
    TRY(json_get_string(o, "model_type", what, "", &type));
    if (list && !json_is_null(list)) {
        name = json_string_value(json_array_get(list, 0));
        if (!name)
            FAIL(ERR_FORMAT, "%s: 'architectures': expected an array of strings, found %s", what,
                 json_is_array(list) ? json_type_name(json_array_get(list, 0)) : json_type_name(list));
    } else if (strcmp(type, "llama") == 0) {
        name = ARCHITECTURE;
    } else {
        FAIL(ERR_FORMAT, "%s: 'architectures': expected [\"" ARCHITECTURE "\"], found %s", what,
             json_type_name(list));
    }
    if (strcmp(name, ARCHITECTURE) != 0)
        FAIL(ERR_LIMIT, "%s: architecture '%.80s' is not computed; this program computes " ARCHITECTURE, what,
             name);
    if (*type && strcmp(type, "llama") != 0)
        FAIL(ERR_LIMIT, "%s: 'model_type' '%.80s' is not computed; this program computes llama", what, type);
    memcpy(c->architecture, ARCHITECTURE, sizeof ARCHITECTURE);
    return 0;
}

static int check_rotary(const json_t *o, const char *what)
{
    const double whole = 1;
    double share = 1;
    TRY(json_get_double(o, "partial_rotary_factor", what, &whole, &share));
    if (share != 1)
        FAIL(ERR_LIMIT, "%s: 'partial_rotary_factor' %g is not computed; this program rotates whole heads",
             what, share);
    return 0;
}

/* Switches of LlamaConfig whose other position is another network. */
static int check_computed(const json_t *o, const char *what)
{
    static const char *const biases[] = {"attention_bias", "mlp_bias"};
    const int no = 0;
    const char *act = NULL;
    TRY(json_get_string(o, "hidden_act", what, "silu", &act));
    if (strcmp(act, "silu") != 0)
        FAIL(ERR_LIMIT, "%s: 'hidden_act' '%.80s' is not computed; this program computes silu", what, act);
    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) {
        int bias = 0;
        TRY(json_get_bool(o, biases[i], what, &no, &bias));
        if (bias)
            FAIL(ERR_LIMIT, "%s: '%s' true is not computed; this program computes layers without bias", what,
                 biases[i]);
    }
    TRY(check_rotary(o, what));
    const json_t *quant = json_object_get(o, "quantization_config");
    if (quant && !json_is_null(quant))
        FAIL(ERR_LIMIT,
             "%s: 'quantization_config' is not computed; this program reads BF16, F16 and F32 weights", what);
    return 0;
}

static int read_shapes(struct model_config *c, const json_t *o, const char *what)
{
    const int positions = 2048;
    TRY(get_dim(o, "vocab_size", what, VOCAB_MAX, NULL, &c->vocab));
    TRY(get_dim(o, "hidden_size", what, HIDDEN_MAX, NULL, &c->hidden));
    TRY(get_dim(o, "intermediate_size", what, FFN_MAX, NULL, &c->ffn));
    TRY(get_dim(o, "num_hidden_layers", what, LAYERS_MAX, NULL, &c->layers));
    TRY(get_dim(o, "num_attention_heads", what, HEADS_MAX, NULL, &c->heads));
    TRY(get_dim(o, "num_key_value_heads", what, HEADS_MAX, &c->heads, &c->kv_heads));
    TRY(get_dim(o, "max_position_embeddings", what, POSITIONS_MAX, &positions, &c->max_positions));
    const int split = c->hidden / c->heads;
    const json_t *head_dim = json_object_get(o, "head_dim");
    if ((!head_dim || json_is_null(head_dim)) && c->hidden % c->heads != 0)
        FAIL(ERR_FORMAT,
             "%s: 'num_attention_heads': expected a divisor of 'hidden_size' %d, found %d; "
             "or give 'head_dim'",
             what, c->hidden, c->heads);
    TRY(get_dim(o, "head_dim", what, HEAD_DIM_MAX, &split, &c->head_dim));
    if (c->heads % c->kv_heads != 0)
        FAIL(ERR_FORMAT,
             "%s: 'num_key_value_heads': expected a divisor of 'num_attention_heads' %d, found %d", what,
             c->heads, c->kv_heads);
    if (c->head_dim % LANES != 0)
        FAIL(ERR_LIMIT, "%s: a head size of %d is not computed; this program computes multiples of %d", what,
             c->head_dim, LANES);
    if (c->ffn % LANES != 0)
        FAIL(ERR_LIMIT, "%s: 'intermediate_size' %d is not computed; this program computes multiples of %d",
             what, c->ffn, LANES);
    return 0;
}

/* Where a checkpoint keeps its rotary numbers: newer files in rope_parameters, older in rope_scaling. */
static int find_rope(const json_t *o, const char *what, const json_t **out)
{
    static const char *const places[] = {"rope_parameters", "rope_scaling"};
    *out = NULL;
    for (size_t i = 0; i < sizeof places / sizeof *places && !*out; i++) {
        const json_t *v = json_object_get(o, places[i]);
        if (v && !json_is_null(v) && !json_is_object(v))
            FAIL(ERR_FORMAT, "%s: '%s': expected an object or null, found %s", what, places[i],
                 json_type_name(v));
        if (json_is_object(v))
            *out = v;
    }
    return 0;
}

static int read_llama3(struct model_config *c, const json_t *rope, const char *what)
{
    TRY(get_range(rope, "factor", what, 1e-3, 1e6, NULL, &c->rope_factor));
    TRY(get_range(rope, "low_freq_factor", what, 1e-3, 1e6, NULL, &c->rope_low));
    TRY(get_range(rope, "high_freq_factor", what, 1e-3, 1e6, NULL, &c->rope_high));
    TRY(get_range(rope, "original_max_position_embeddings", what, 1, POSITIONS_MAX, NULL, &c->rope_original));
    if (c->rope_low > c->rope_high)
        FAIL(ERR_FORMAT, "%s: 'low_freq_factor': expected at most 'high_freq_factor' %g, found %g", what,
             (double)c->rope_high, (double)c->rope_low);
    c->rope_llama3 = 1;
    return 0;
}

static int read_rope(struct model_config *c, const json_t *o, const char *what)
{
    const json_t *rope = NULL;
    const char *type = NULL;
    double theta = 10000;
    TRY(json_get_double(o, "rope_theta", what, &theta, &theta));
    TRY(find_rope(o, what, &rope));
    if (!rope)
        return get_range(o, "rope_theta", what, 1, 1e12, &theta, &c->rope_theta);
    TRY(get_range(rope, "rope_theta", what, 1, 1e12, &theta, &c->rope_theta));
    TRY(check_rotary(rope, what));
    TRY(json_get_string(rope, "type", what, "default", &type));
    TRY(json_get_string(rope, "rope_type", what, type, &type));
    if (strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "llama3") != 0)
        FAIL(ERR_LIMIT, "%s: rope type '%.80s' is not computed; this program computes default and llama3",
             what, type);
    return read_llama3(c, rope, what);
}

static int read_config(struct model_config *c, const json_t *o, const char *what)
{
    const int untied = 0;
    const double eps = 1e-6;
    if (!json_is_object(o))
        FAIL(ERR_FORMAT, "%s: expected an object, found %s", what, json_type_name(o));
    TRY(check_architecture(c, o, what));
    TRY(check_computed(o, what));
    TRY(read_shapes(c, o, what));
    TRY(get_range(o, "rms_norm_eps", what, 1e-12, 1, &eps, &c->rms_eps));
    TRY(json_get_bool(o, "tie_word_embeddings", what, &untied, &c->tied));
    return read_rope(c, o, what);
}

int model_config_read(struct model_config *c, const char *dir)
{
    int rc;
    char *path = NULL;
    json_t *o = NULL;
    struct model_config new = {0};
    if (asprintf(&path, "%s/config.json", dir) < 0) {
        path = NULL;
        rc = ERR_SET(ERR_MEMORY, "%s: out of memory for a path", dir);
        goto out;
    }
    rc = json_read_file(path, &o);
    if (rc)
        goto out;
    rc = read_config(&new, o, path);
    if (rc)
        goto out;
    *c = new;
out:
    json_decref(o);
    free(path);
    return rc;
}

int model_config_parse(struct model_config *c, const char *json, unsigned long n, const char *what)
{
    json_t *o = NULL;
    struct model_config new = {0};
    TRY(json_parse(json, n, what, &o));
    int rc = read_config(&new, o, what);
    if (rc == 0)
        *c = new;
    json_decref(o);
    return rc;
}

/* The config.json that each was published with. */
#define LLAMA3(scale)                                                                                        \
    .architecture = ARCHITECTURE, .vocab = 128256, .max_positions = 131072, .rms_eps = 1e-5f,                \
    .rope_theta = 500000, .rope_llama3 = 1, .rope_factor = (scale), .rope_low = 1, .rope_high = 4,           \
    .rope_original = 8192, .kv_heads = 8
static const struct {
    const char *name;
    struct model_config config;
} published[] = {
    {"smollm2-135m",
     {.architecture = ARCHITECTURE,
      .vocab = 49152,
      .hidden = 576,
      .ffn = 1536,
      .layers = 30,
      .heads = 9,
      .kv_heads = 3,
      .head_dim = 64,
      .max_positions = 8192,
      .tied = 1,
      .rms_eps = 1e-5f,
      .rope_theta = 100000}},
    {"llama-3.2-1b",
     {LLAMA3(32), .hidden = 2048, .ffn = 8192, .layers = 16, .heads = 32, .head_dim = 64, .tied = 1}},
    {"llama-3.1-8b", {LLAMA3(8), .hidden = 4096, .ffn = 14336, .layers = 32, .heads = 32, .head_dim = 128}},
    {"llama-3.3-70b", {LLAMA3(8), .hidden = 8192, .ffn = 28672, .layers = 80, .heads = 64, .head_dim = 128}},
};
enum { N_PUBLISHED = sizeof published / sizeof *published };

int model_config_named(struct model_config *c, const char *name)
{
    char names[128] = "";
    size_t at = 0;
    for (size_t i = 0; i < N_PUBLISHED; i++) {
        if (strcmp(name, published[i].name) == 0) {
            *c = published[i].config;
            return 0;
        }
        at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", i ? ", " : "", published[i].name);
    }
    FAIL(ERR_CONFIG, "model shape '%.80s': expected one of %s", name, names);
}

/* Llama 3.1's bands: short wavelengths stay, long ones are stretched, between them a linear blend. */
static double stretch(const struct model_config *c, double f)
{
    double wavelength = 2 * acos(-1.0) / f;
    if (wavelength < (double)c->rope_original / c->rope_high)
        return f;
    if (wavelength > (double)c->rope_original / c->rope_low || c->rope_high == c->rope_low)
        return f / c->rope_factor;
    double s = (c->rope_original / wavelength - c->rope_low) / ((double)c->rope_high - c->rope_low);
    return (1 - s) * f / c->rope_factor + s * f;
}

void model_config_inv_freq(const struct model_config *c, float *inv_freq)
{
    for (int j = 0; j < c->head_dim / 2; j++) {
        double f = pow(c->rope_theta, -2.0 * j / c->head_dim);
        inv_freq[j] = (float)(c->rope_llama3 ? stretch(c, f) : f);
    }
}

unsigned long model_config_params(const struct model_config *c)
{
    unsigned long hidden = (unsigned long)c->hidden, head_dim = (unsigned long)c->head_dim;
    unsigned long heads = (unsigned long)c->heads, kv_heads = (unsigned long)c->kv_heads;
    unsigned long attention = (2 * heads + 2 * kv_heads) * head_dim * hidden;
    unsigned long layer = attention + 3 * hidden * (unsigned long)c->ffn + 2 * hidden;
    unsigned long embeddings = (unsigned long)c->vocab * hidden * (c->tied ? 1 : 2);
    return (unsigned long)c->layers * layer + embeddings + hidden;
}

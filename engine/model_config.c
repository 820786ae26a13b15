/* model_config: only what the engine computes passes. A key that would change the numbers and is not computed
 * is refused by name, because a model that runs with the wrong formula still writes plausible text. */
#include "engine/err.h"
#include "engine/model_config_keys.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ARCHITECTURE "LlamaForCausalLM"

static const struct known {
    const char *name, *type;
    int llama4, nested; /* nested: the text model is in text_config */
} known[] = {{ARCHITECTURE, "llama", 0, 0},
             {"Llama4ForCausalLM", "llama4_text", 1, 0},
             {"Llama4ForConditionalGeneration", "llama4", 1, 1}};
enum { N_KNOWN = sizeof known / sizeof *known };

int model_config_dim(const json_t *o, const char *key, const char *what, long hi, const int *fallback,
                     int *out)
{
    long value = 0, fall = fallback ? *fallback : 0;
    TRY(json_get_int(o, key, what, 1, hi, fallback ? &fall : NULL, &value));
    *out = (int)value;
    return 0;
}

/* Where lo > 0, what passes is positive as a float, too, and no power of it leaves the range of one. */
int model_config_range(const json_t *o, const char *key, const char *what, double lo, double hi,
                       const double *fallback, float *out)
{
    double value = 0;
    TRY(json_get_double(o, key, what, fallback, &value));
    if (!(value >= lo && value <= hi))
        FAIL(ERR_FORMAT, "%s: '%s': expected a number from %g to %g, found %g", what, key, lo, hi, value);
    *out = (float)value;
    return 0;
}

/* By name; where a file has none, by model_type. */
static int find_architecture(const json_t *o, const char *what, const char *type, const struct known **out)
{
    const json_t *list = json_object_get(o, "architectures");
    const char *name = json_string_value(json_array_get(list, 0));
    const int absent = !list || json_is_null(list);
    if (!absent && !name)
        FAIL(ERR_FORMAT, "%s: 'architectures': expected an array of strings, found %s", what,
             json_is_array(list) ? json_type_name(json_array_get(list, 0)) : json_type_name(list));
    for (int i = 0; i < N_KNOWN; i++)
        if (absent ? strcmp(type, known[i].type) == 0 : strcmp(name, known[i].name) == 0) {
            *out = &known[i];
            return 0;
        }
    if (absent)
        FAIL(ERR_FORMAT, "%s: 'architectures': expected [\"" ARCHITECTURE "\"], found %s", what,
             json_type_name(list));
    FAIL(ERR_LIMIT, "%s: architecture '%.80s' is not computed; this program computes %s, %s and %s", what,
         name, known[0].name, known[1].name, known[2].name);
}

static int check_architecture(struct model_config *c, const json_t *o, const char *what,
                              const struct known **out)
{
    const char *type = NULL;
    TRY(json_get_string(o, "model_type", what, "", &type));
    TRY(find_architecture(o, what, type, out));
    if (*type && strcmp(type, (*out)->type) != 0)
        FAIL(ERR_LIMIT, "%s: 'model_type' '%.80s' is not computed; this program computes %s for %s", what,
             type, (*out)->type, (*out)->name);
    snprintf(c->architecture, sizeof c->architecture, "%s", (*out)->name);
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
    return model_config_quantised(o, what);
}

/* Llama 4 has a head size of its own; others split the hidden size. */
static int read_heads(struct model_config *c, const json_t *o, const char *what, const struct known *arch)
{
    TRY(model_config_dim(o, "num_attention_heads", what, HEADS_MAX, NULL, &c->heads));
    TRY(model_config_dim(o, "num_key_value_heads", what, HEADS_MAX, &c->heads, &c->kv_heads));
    const int usual = arch->llama4 ? 128 : c->hidden / c->heads;
    const json_t *head_dim = json_object_get(o, "head_dim");
    if (!arch->llama4 && (!head_dim || json_is_null(head_dim)) && c->hidden % c->heads != 0)
        FAIL(ERR_FORMAT,
             "%s: 'num_attention_heads': expected a divisor of 'hidden_size' %d, found %d; "
             "or give 'head_dim'",
             what, c->hidden, c->heads);
    TRY(model_config_dim(o, "head_dim", what, HEAD_DIM_MAX, &usual, &c->head_dim));
    if (c->heads % c->kv_heads != 0)
        FAIL(ERR_FORMAT,
             "%s: 'num_key_value_heads': expected a divisor of 'num_attention_heads' %d, found %d", what,
             c->heads, c->kv_heads);
    if (c->head_dim % LANES != 0)
        FAIL(ERR_LIMIT, "%s: a head size of %d is not computed; this program computes multiples of %d", what,
             c->head_dim, LANES);
    return 0;
}

static int read_shapes(struct model_config *c, const json_t *o, const char *what, const struct known *arch)
{
    const int positions = arch->llama4 ? 131072 : 2048;
    TRY(model_config_dim(o, "vocab_size", what, VOCAB_MAX, NULL, &c->vocab));
    TRY(model_config_dim(o, "hidden_size", what, HIDDEN_MAX, NULL, &c->hidden));
    TRY(model_config_dim(o, "num_hidden_layers", what, MODEL_LAYERS_MAX, NULL, &c->layers));
    TRY(model_config_dim(o, "max_position_embeddings", what, POSITIONS_MAX, &positions, &c->max_positions));
    TRY(read_heads(c, o, what, arch));
    if (arch->llama4)
        return model_config_llama4(c, o, what);
    TRY(model_config_dim(o, "intermediate_size", what, FFN_MAX, NULL, &c->ffn));
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
    TRY(model_config_range(rope, "factor", what, 1e-3, 1e6, NULL, &c->rope_factor));
    TRY(model_config_range(rope, "low_freq_factor", what, 1e-3, 1e6, NULL, &c->rope_low));
    TRY(model_config_range(rope, "high_freq_factor", what, 1e-3, 1e6, NULL, &c->rope_high));
    TRY(model_config_range(rope, "original_max_position_embeddings", what, 1, POSITIONS_MAX, NULL,
                           &c->rope_original));
    if (c->rope_low > c->rope_high)
        FAIL(ERR_FORMAT, "%s: 'low_freq_factor': expected at most 'high_freq_factor' %g, found %g", what,
             (double)c->rope_high, (double)c->rope_low);
    c->rope_llama3 = 1;
    return 0;
}

int model_config_rope(struct model_config *c, const json_t *o, const char *what)
{
    const json_t *rope = NULL;
    const char *type = NULL;
    double theta = c->llama4 ? 500000 : 10000;
    TRY(json_get_double(o, "rope_theta", what, &theta, &theta));
    TRY(find_rope(o, what, &rope));
    if (!rope)
        return model_config_range(o, "rope_theta", what, 1, 1e12, &theta, &c->rope_theta);
    TRY(model_config_range(rope, "rope_theta", what, 1, 1e12, &theta, &c->rope_theta));
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

/* The object that describes the text model: the file itself, or its text_config. */
static int find_text(const json_t *o, const char *what, const struct known *arch, const json_t **out)
{
    *out = arch->nested ? json_object_get(o, "text_config") : o;
    if (!json_is_object(*out))
        FAIL(ERR_FORMAT, "%s: 'text_config': expected an object, found %s", what, json_type_name(*out));
    return 0;
}

static int read_config(struct model_config *c, const json_t *o, const char *what)
{
    const struct known *arch = NULL;
    const json_t *text = NULL;
    int tied = 0;
    if (!json_is_object(o))
        FAIL(ERR_FORMAT, "%s: expected an object, found %s", what, json_type_name(o));
    TRY(check_architecture(c, o, what, &arch));
    TRY(find_text(o, what, arch, &text));
    TRY(check_computed(text, what));
    TRY(model_config_quantised(o, what));
    TRY(read_shapes(c, text, what, arch));
    const double eps = arch->llama4 ? 1e-5 : 1e-6;
    TRY(model_config_range(text, "rms_norm_eps", what, 1e-12, 1, &eps, &c->rms_eps));
    TRY(json_get_bool(o, "tie_word_embeddings", what, &tied, &tied));
    TRY(json_get_bool(text, "tie_word_embeddings", what, &tied, &c->tied));
    return model_config_rope(c, text, what);
}

/* ModelOpt describes its rounding in a file of its own, older versions nowhere else. */
static int check_modelopt(const char *dir)
{
    int rc = 0;
    char *path = NULL;
    json_t *o = NULL;
    if (asprintf(&path, "%s/hf_quant_config.json", dir) < 0)
        FAIL(ERR_MEMORY, "%s: out of memory for a path", dir);
    if (access(path, F_OK) == 0)
        rc = json_read_file(path, &o);
    if (rc == 0 && o)
        rc = model_config_modelopt(o, path);
    json_decref(o);
    free(path);
    return rc;
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
    if (rc == 0)
        rc = check_modelopt(dir);
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

#define LLAMA4                                                                                               \
    .architecture = "Llama4ForConditionalGeneration", .vocab = 202048, .hidden = 5120, .ffn = 8192,          \
    .layers = 48, .heads = 40, .kv_heads = 8, .head_dim = 128, .rms_eps = 1e-5f, .rope_theta = 500000,       \
    .llama4 = 1, .top_k = 1, .ffn_dense = 16384, .chunk = 8192, .temperature_scale = 0.1f,                   \
    .temperature_floor = 8192, .rope_interleaved = 1

/* The config.json that each was published with. */
#define LLAMA3(scale)                                                                                        \
    .architecture = ARCHITECTURE, .vocab = 128256, .max_positions = 131072, .rms_eps = 1e-5f,                \
    .rope_theta = 500000, .rope_llama3 = 1, .rope_factor = (scale), .rope_low = 1, .rope_high = 4,           \
    .rope_original = 8192, .kv_heads = 8
static const struct {
    const char *name;
    struct model_config config;
    int moe_step; /* Llama 4: every so many layers one has experts */
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
      .rope_theta = 100000},
     0},
    {"llama-3.2-1b",
     {LLAMA3(32), .hidden = 2048, .ffn = 8192, .layers = 16, .heads = 32, .head_dim = 64, .tied = 1},
     0},
    {"llama-3.1-8b",
     {LLAMA3(8), .hidden = 4096, .ffn = 14336, .layers = 32, .heads = 32, .head_dim = 128},
     0},
    {"llama-3.3-70b",
     {LLAMA3(8), .hidden = 8192, .ffn = 28672, .layers = 80, .heads = 64, .head_dim = 128},
     0},
    {"maverick", {LLAMA4, .experts = 128, .max_positions = 1 << 20}, 2},
    {"scout",
     {LLAMA4, .experts = 16, .max_positions = 10 << 20, .qk_norm = 1, .rope_llama3 = 1, .rope_factor = 16,
      .rope_low = 1, .rope_high = 1, .rope_original = 8192},
     1},
};
enum { N_PUBLISHED = sizeof published / sizeof *published };

int model_config_named(struct model_config *c, const char *name)
{
    char names[128] = "";
    size_t at = 0;
    for (size_t i = 0; i < N_PUBLISHED; i++) {
        if (strcmp(name, published[i].name) == 0) {
            *c = published[i].config;
            for (int l = 0; published[i].moe_step && l < c->layers; l++)
                c->kind[l] = (unsigned char)(((l + 1) % 4 ? 0 : LAYER_NOPE) |
                                             ((l + 1) % published[i].moe_step ? 0 : LAYER_MOE));
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

/* Of one layer's MLPs: a dense one, or the router, the routed experts and the shared one. */
static unsigned long mlp_params(const struct model_config *c, int kind)
{
    const unsigned long hidden = (unsigned long)c->hidden, experts = (unsigned long)c->experts;
    const unsigned long ffn = (unsigned long)(c->ffn - c->ffn_pad);
    if (kind & LAYER_MOE)
        return experts * hidden + (experts + 1) * 3 * hidden * ffn;
    return 3 * hidden * (c->llama4 ? (unsigned long)(c->ffn_dense - c->ffn_dense_pad) : ffn);
}

unsigned long model_config_params(const struct model_config *c)
{
    unsigned long hidden = (unsigned long)c->hidden, head_dim = (unsigned long)c->head_dim;
    unsigned long heads = (unsigned long)c->heads, kv_heads = (unsigned long)c->kv_heads;
    unsigned long attention = (2 * heads + 2 * kv_heads) * head_dim * hidden;
    unsigned long sum = (unsigned long)c->vocab * hidden * (c->tied ? 1 : 2) + hidden;
    for (int i = 0; i < c->layers; i++)
        sum += attention + 2 * hidden + mlp_params(c, c->kind[i]);
    return sum;
}

/* model_config_llama4: which layer is what, and the numbers that only Llama 4 has. Keys and defaults:
 * transformers' Llama4TextConfig, whose no_rope_layers holds 1 for a layer that DOES rotate. */
#include "engine/err.h"
#include "engine/model_config_keys.h"
#include <string.h>

static int get_list(const json_t *o, const char *key, const char *what, const json_t **out)
{
    *out = json_object_get(o, key);
    if (json_is_null(*out))
        *out = NULL;
    if (*out && !json_is_array(*out))
        FAIL(ERR_FORMAT, "%s: '%s': expected an array or null, found %s", what, key, json_type_name(*out));
    return 0;
}

static int check_length(const struct model_config *c, const json_t *list, const char *key, const char *what)
{
    if (json_array_size(list) != (size_t)c->layers)
        FAIL(ERR_FORMAT, "%s: '%s': expected one element for each of %d layers, found %zu", what, key,
             c->layers, json_array_size(list));
    return 0;
}

/* An integer of a list, or a boolean as 0 and 1. */
static int element(const json_t *list, int i, long hi, const char *key, const char *what, int *out)
{
    const json_t *v = json_array_get(list, (size_t)i);
    const json_int_t value = json_is_boolean(v) ? json_is_true(v) : json_integer_value(v);
    if ((!json_is_boolean(v) && !json_is_integer(v)) || value < 0 || value > hi)
        FAIL(ERR_FORMAT, "%s: '%s': expected integers from 0 to %ld, found %s at %d", what, key, hi,
             json_is_integer(v) ? "another" : json_type_name(v), i);
    *out = (int)value;
    return 0;
}

static int read_nope(struct model_config *c, const json_t *o, const char *what)
{
    static const char key[] = "no_rope_layers";
    const json_t *list = NULL;
    const int four = 4;
    int interval = 0, rotates = 0;
    TRY(get_list(o, key, what, &list));
    TRY(model_config_dim(o, "no_rope_layer_interval", what, MODEL_LAYERS_MAX, &four, &interval));
    if (json_array_size(list) > 0)
        TRY(check_length(c, list, key, what));
    for (int i = 0; i < c->layers; i++) {
        rotates = (i + 1) % interval != 0;
        if (json_array_size(list) > 0)
            TRY(element(list, i, 1, key, what, &rotates));
        c->kind[i] |= rotates ? 0 : LAYER_NOPE;
    }
    return 0;
}

static int read_moe(struct model_config *c, const json_t *o, const char *what)
{
    static const char key[] = "moe_layers";
    const json_t *list = NULL;
    const int one = 1;
    int step = 0, layer = 0;
    TRY(get_list(o, key, what, &list));
    TRY(model_config_dim(o, "interleave_moe_layer_step", what, MODEL_LAYERS_MAX, &one, &step));
    for (int i = step - 1; !list && i < c->layers; i += step)
        c->kind[i] |= LAYER_MOE;
    for (int i = 0; i < (int)json_array_size(list); i++) {
        TRY(element(list, i, c->layers - 1, key, what, &layer));
        c->kind[layer] |= LAYER_MOE;
    }
    return 0;
}

/* Newer files repeat which layers attend in chunks; a layer that does one without the other is not computed.
 */
static int check_types(const struct model_config *c, const json_t *o, const char *what)
{
    static const char key[] = "layer_types";
    const json_t *list = NULL;
    TRY(get_list(o, key, what, &list));
    if (!list)
        return 0;
    TRY(check_length(c, list, key, what));
    for (int i = 0; i < c->layers; i++) {
        const char *want = c->kind[i] & LAYER_NOPE ? "full_attention" : "chunked_attention";
        const char *found = json_string_value(json_array_get(list, (size_t)i));
        if (!found || strcmp(found, want) != 0)
            FAIL(ERR_LIMIT, "%s: '%s': expected '%s' for layer %d, which %s, found '%.40s'", what, key, want,
                 i, c->kind[i] & LAYER_NOPE ? "does not rotate" : "rotates", found ? found : "no string");
    }
    return 0;
}

static int read_experts(struct model_config *c, const json_t *o, const char *what)
{
    const int one = 1;
    TRY(model_config_dim(o, "num_local_experts", what, EXPERTS_MAX, NULL, &c->experts));
    TRY(model_config_dim(o, "num_experts_per_tok", what, EXPERTS_MAX, &one, &c->top_k));
    if (c->top_k > c->experts)
        FAIL(ERR_FORMAT, "%s: 'num_experts_per_tok': expected at most 'num_local_experts' %d, found %d", what,
             c->experts, c->top_k);
    return 0;
}

static int read_width(const json_t *o, const char *key, const char *what, int *width, int *pad)
{
    int stored = 0;
    TRY(model_config_dim(o, key, what, FFN_MAX, NULL, &stored));
    *width = (stored + LANES - 1) / LANES * LANES;
    *pad = *width - stored;
    return 0;
}

/* Absent is transformers' default, null is none. */
static int read_chunk(struct model_config *c, const json_t *o, const char *what)
{
    static const char key[] = "attention_chunk_size";
    const int usual = 8192;
    if (json_is_null(json_object_get(o, key)))
        return 0;
    return model_config_dim(o, key, what, POSITIONS_MAX, &usual, &c->chunk);
}

/* Published files say true, or 4, or nothing. */
static int read_temperature(struct model_config *c, const json_t *o, const char *what)
{
    static const char key[] = "attn_temperature_tuning";
    const json_t *v = json_object_get(o, key);
    const double scale = 0.1, floor_at = 8192;
    if (v && !json_is_null(v) && !json_is_boolean(v) && !json_is_integer(v))
        FAIL(ERR_FORMAT, "%s: '%s': expected true, false or an integer, found %s", what, key,
             json_type_name(v));
    TRY(model_config_range(o, "attn_scale", what, 0, 1e3, &scale, &c->temperature_scale));
    TRY(model_config_range(o, "floor_scale", what, 1, POSITIONS_MAX, &floor_at, &c->temperature_floor));
    if (json_is_false(v) || (json_is_integer(v) && json_integer_value(v) == 0))
        c->temperature_scale = 0;
    return 0;
}

int model_config_llama4(struct model_config *c, const json_t *text, const char *what)
{
    const int yes = 1;
    c->llama4 = 1;
    c->rope_interleaved = 1;
    TRY(read_width(text, "intermediate_size", what, &c->ffn, &c->ffn_pad));
    TRY(read_width(text, "intermediate_size_mlp", what, &c->ffn_dense, &c->ffn_dense_pad));
    TRY(read_experts(c, text, what));
    TRY(read_nope(c, text, what));
    TRY(read_moe(c, text, what));
    TRY(check_types(c, text, what));
    TRY(read_chunk(c, text, what));
    TRY(read_temperature(c, text, what));
    return json_get_bool(text, "use_qk_norm", what, &yes, &c->qk_norm);
}

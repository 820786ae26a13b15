/* head_config: config.json of an EAGLE-3 head (model-formats D.1, D.5). A field that is not in the tables is
 * refused: what it means for the network is not known here. */
#include "engine/err.h"
#include "engine/head.h"
#include "engine/model_config_keys.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* They say nothing that the network's maths depends on. */
static const char *const silent[] = {"_name_or_path",       "architectures",
                                     "attention_dropout",   "auto_map",
                                     "bos_token_id",        "dtype",
                                     "embed_requires_grad", "eos_token_id",
                                     "initializer_range",   "max_window_layers",
                                     "pad_token_id",        "pretraining_tp",
                                     "speculators_config",  "speculators_model_type",
                                     "speculators_version", "tie_word_embeddings",
                                     "torch_dtype",         "transformers_version",
                                     "use_cache",           NULL};
static const char *const used[] = {"attention_bias",
                                   "bias",
                                   "draft_vocab_size",
                                   "eagle_aux_hidden_state_layer_ids",
                                   "eagle_config",
                                   "fc_norm",
                                   "head_dim",
                                   "hidden_act",
                                   "hidden_size",
                                   "intermediate_size",
                                   "layer_types",
                                   "max_position_embeddings",
                                   "mlp_bias",
                                   "model_type",
                                   "norm_before_fc",
                                   "norm_before_residual",
                                   "norm_output",
                                   "num_attention_heads",
                                   "num_hidden_layers",
                                   "num_key_value_heads",
                                   "rms_norm_eps",
                                   "rope_parameters",
                                   "rope_scaling",
                                   "rope_theta",
                                   "sliding_window",
                                   "target_hidden_size",
                                   "transformer_layer_config",
                                   "use_sliding_window",
                                   "vocab_size",
                                   NULL};

static int listed(const char *const *list, const char *key)
{
    while (*list && strcmp(*list, key) != 0)
        list++;
    return *list != NULL;
}

static int check_keys(const json_t *o, const char *what)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o, key, value) if (!listed(silent, key) && !listed(used, key)) FAIL(
        ERR_LIMIT, "%s: '%s': expected fields of an EAGLE-3 head that are known, found this one", what, key);
    return 0;
}

static int get_int(const json_t *o, const char *key, const char *what, long def, int *out)
{
    long v = 0;
    TRY(json_get_int(o, key, what, 1, 1 << 24, def > 0 ? &def : NULL, &v));
    *out = (int)v;
    return 0;
}

static int refuse_flag(const json_t *o, const char *key, const char *what)
{
    const int off = 0;
    int on = 0;
    TRY(json_get_bool(o, key, what, &off, &on));
    if (on)
        FAIL(ERR_LIMIT, "%s: '%s': expected false, found true: such heads are not computed", what, key);
    return 0;
}

/* Two places that disagree: nothing says which of them the head was trained with. */
static int read_rope(struct head_config *c, const json_t *o, const char *what)
{
    const json_t *newer = json_object_get(o, "rope_parameters"), *older = json_object_get(o, "rope_scaling");
    const char *type[2] = {"default", "default"};
    if (json_is_object(newer) && json_is_object(older)) {
        TRY(json_get_string(newer, "rope_type", what, "default", &type[0]));
        TRY(json_get_string(older, "type", what, "default", &type[1]));
        TRY(json_get_string(older, "rope_type", what, type[1], &type[1]));
        if (strcmp(type[0], type[1]) != 0)
            FAIL(ERR_FORMAT,
                 "%s: 'rope_parameters' and 'rope_scaling': expected one type, found '%s' and '%s'", what,
                 type[0], type[1]);
    }
    c->rope = (struct model_config){.head_dim = c->head_dim};
    return model_config_rope(&c->rope, o, what);
}

static int read_kind(struct head_config *c, const json_t *o, const char *what)
{
    const char *act = "silu", *type = "llama";
    TRY(json_get_string(o, "model_type", what, "llama", &type));
    TRY(json_get_string(o, "hidden_act", what, "silu", &act));
    c->qk_norm = strcmp(type, "qwen3") == 0;
    if (!c->qk_norm && strcmp(type, "llama") != 0)
        FAIL(ERR_LIMIT, "%s: 'model_type': expected \"llama\" or \"qwen3\", found \"%s\"", what, type);
    if (strcmp(act, "silu") != 0)
        FAIL(ERR_LIMIT, "%s: 'hidden_act': expected \"silu\", found \"%s\"", what, act);
    TRY(refuse_flag(o, "attention_bias", what));
    TRY(refuse_flag(o, "mlp_bias", what));
    return refuse_flag(o, "bias", what);
}

static int read_window(struct head_config *c, const json_t *o, const char *what)
{
    const json_t *types = json_object_get(o, "layer_types");
    const char *type = "full_attention";
    if (types && !json_is_null(types)) {
        if (!json_is_array(types) || json_array_size(types) != 1 || !json_is_string(json_array_get(types, 0)))
            FAIL(ERR_FORMAT, "%s: 'layer_types': expected a list of one word", what);
        type = json_string_value(json_array_get(types, 0));
    } else
        TRY(refuse_flag(o, "use_sliding_window", what)); /* of which layers is then a matter of versions */
    if (strcmp(type, "sliding_attention") == 0)
        return get_int(o, "sliding_window", what, 0, &c->window);
    if (strcmp(type, "full_attention") != 0)
        FAIL(ERR_LIMIT, "%s: 'layer_types': expected full_attention or sliding_attention, found '%s'", what,
             type);
    return 0;
}

static int read_layer(struct head_config *c, const json_t *o, const char *what)
{
    const double eps = 1e-6;
    const long one = 1, none = 0;
    long layers = 0, positions = 0;
    TRY(check_keys(o, what));
    TRY(read_kind(c, o, what));
    TRY(json_get_int(o, "num_hidden_layers", what, 1, 1 << 20, &one, &layers));
    if (layers != 1)
        FAIL(ERR_LIMIT, "%s: 'num_hidden_layers': expected 1, found %ld: deeper heads are not computed", what,
             layers);
    TRY(get_int(o, "hidden_size", what, 0, &c->hidden));
    TRY(get_int(o, "intermediate_size", what, 0, &c->ffn));
    TRY(get_int(o, "num_attention_heads", what, 0, &c->heads));
    TRY(get_int(o, "num_key_value_heads", what, c->heads, &c->kv_heads));
    TRY(get_int(o, "head_dim", what, c->hidden >= c->heads ? c->hidden / c->heads : 1, &c->head_dim));
    TRY(json_get_int(o, "max_position_embeddings", what, 1, 1 << 28, &none, &positions));
    c->positions = (int)positions;
    TRY(model_config_range(o, "rms_norm_eps", what, 1e-12, 1, &eps, &c->rms_eps));
    if (c->head_dim % 16 || c->head_dim > HEAD_DIM_LIMIT || c->heads % c->kv_heads || c->ffn % 16)
        FAIL(ERR_LIMIT,
             "%s: expected head_dim and intermediate_size in steps of 16, and heads in equal groups, found "
             "%d, %d, %d / %d",
             what, c->head_dim, c->ffn, c->heads, c->kv_heads);
    TRY(read_window(c, o, what));
    return read_rope(c, o, what);
}

/* speculators counts inputs, all others outputs (D.2). */
static int read_layers(struct head_config *c, const json_t *o, int outputs, const char *what)
{
    const json_t *ids = json_object_get(o, "eagle_aux_hidden_state_layer_ids");
    if (!ids || json_is_null(ids))
        return 0;
    if (!json_is_array(ids) || json_array_size(ids) != HEAD_TAPS)
        FAIL(ERR_FORMAT, "%s: 'eagle_aux_hidden_state_layer_ids': expected %d layers", what, HEAD_TAPS);
    for (int i = 0; i < HEAD_TAPS; i++) {
        const json_t *id = json_array_get(ids, (size_t)i);
        const json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
        if (v < 0 || v > 1 << 20)
            FAIL(ERR_FORMAT, "%s: 'eagle_aux_hidden_state_layer_ids': expected numbers of layers", what);
        c->layer[i] = (int)v + outputs;
    }
    c->layers_given = 1;
    return 0;
}

static int read_eagle(struct head_config *c, const json_t *o, const char *what)
{
    static const char *const known[] = {"eagle_aux_hidden_state_layer_ids", "use_aux_hidden_state",
                                        "use_input_layernorm_in_first_layer", "use_last_layernorm", NULL};
    const char *key;
    json_t *value;
    if (!json_is_object(o))
        return 0;
    json_object_foreach((json_t *)o, key,
                        value) if (!listed(known, key) ? !json_is_false(value) : json_is_false(value))
        FAIL(ERR_LIMIT, "%s: 'eagle_config.%s': expected the standard head, found another value", what, key);
    return read_layers(c, o, 1, what);
}

static int check_target(const struct head_config *c, const struct model_config *t, int vocab,
                        const char *what)
{
    if (c->target_hidden != t->hidden)
        FAIL(ERR_CONFIG,
             "%s: a head for a target of width %d, this target has %d: take the head of this model", what,
             c->target_hidden, t->hidden);
    if (vocab != t->vocab || c->vocab > t->vocab)
        FAIL(
            ERR_CONFIG,
            "%s: a head for a target of %d ids (%d drafted), this target has %d: take the head of this model",
            what, vocab, c->vocab, t->vocab);
    for (int i = 0; i < HEAD_TAPS; i++)
        if (c->layer[i] >= t->layers)
            FAIL(ERR_CONFIG, "%s: feature %d comes from before layer %d, the target's last is %d", what, i,
                 c->layer[i], t->layers - 1);
    return 0;
}

/* Where the formats use one word for two things (model-formats D.1, D.2), and for what is missing. */
static int read_norms(struct head_config *c, const json_t *o, int speculators, const char *what)
{
    const int off = 0;
    int norm_output = 0;
    TRY(json_get_bool(o, "norm_before_residual", what, &speculators, &c->norm_before_residual));
    TRY(json_get_bool(o, "norm_before_fc", what, &off, &c->norm_before_fc));
    TRY(json_get_bool(o, "fc_norm", what, &off, &c->fc_norm));
    TRY(json_get_bool(o, "norm_output", what, speculators ? &off : &(const int){1}, &norm_output));
    c->feed_normed = speculators && norm_output;
    if (!speculators && !norm_output)
        FAIL(ERR_LIMIT,
             "%s: 'norm_output': expected true, found false: lm_head without a norm is not computed", what);
    if (c->norm_before_fc && c->fc_norm)
        FAIL(ERR_FORMAT, "%s: 'norm_before_fc' and 'fc_norm': expected at most one of them true", what);
    return 0;
}

static int read_config(struct head_config *c, const struct model_config *t, const json_t *o, const char *what)
{
    if (!json_is_object(o))
        FAIL(ERR_FORMAT, "%s: expected an object, found %s", what, json_type_name(o));
    const json_t *inner = json_object_get(o, "transformer_layer_config");
    const int speculators = json_is_object(inner);
    const json_t *layer = speculators ? inner : o;
    int vocab = 0;
    head_config_like(c, t);
    TRY(check_keys(o, what));
    TRY(read_layer(c, layer, what));
    TRY(get_int(layer, "vocab_size", what, 0, &vocab));
    TRY(get_int(o, "draft_vocab_size", what, vocab, &c->vocab));
    TRY(get_int(o, "target_hidden_size", what, c->hidden, &c->target_hidden));
    TRY(read_norms(c, o, speculators, what));
    TRY(read_layers(c, o, !speculators, what));
    TRY(read_eagle(c, json_object_get(o, "eagle_config"), what));
    return check_target(c, t, vocab, what);
}

static int clamp(int v, int hi)
{
    return v < 0 ? 0 : v > hi ? hi : v;
}

void head_config_like(struct head_config *c, const struct model_config *t)
{
    const int last = t->layers - 1;
    *c = (struct head_config){
        .hidden = t->hidden,
        .target_hidden = t->hidden,
        .ffn = t->ffn,
        .heads = t->heads,
        .kv_heads = t->kv_heads,
        .head_dim = t->head_dim,
        .vocab = t->vocab,
        .target_vocab = t->vocab,
        .rms_eps = t->rms_eps,
        .rope = {.head_dim = t->head_dim, .rope_theta = 10000},
        .layer = {clamp(2, last), clamp(t->layers / 2, last), clamp(t->layers - 3, last)}};
}

int head_config_parse(struct head_config *c, const struct model_config *target, const char *json,
                      unsigned long n, const char *what)
{
    json_t *o = NULL;
    TRY(json_parse(json, n, what, &o));
    const int rc = read_config(c, target, o, what);
    json_decref(o);
    return rc;
}

int head_config_read(struct head_config *c, const struct model_config *target, const char *dir)
{
    char *path = NULL;
    json_t *o = NULL;
    if (asprintf(&path, "%s/config.json", dir) < 0)
        FAIL(ERR_MEMORY, "%s: out of memory for a path", dir);
    int rc = json_read_file(path, &o);
    if (rc == 0)
        rc = read_config(c, target, o, path);
    json_decref(o);
    free(path);
    return rc;
}

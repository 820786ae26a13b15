/* head_config: config.json of an EAGLE-3 head (model-formats D.1, D.5). A field that is not in the tables is
 * refused: what it means for the network is not known here. */
#include "engine/err.h"
#include "engine/head.h"
#include "engine/json.h"
#include <stdio.h>
#include <string.h>

/* They say nothing that the network's maths depends on. */
static const char *const silent[] = {"_name_or_path",       "architectures",
                                     "attention_dropout",   "auto_map",
                                     "bos_token_id",        "dtype",
                                     "embed_requires_grad", "eos_token_id",
                                     "initializer_range",   "max_position_embeddings",
                                     "model_type",          "num_hidden_layers",
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
                                   "mlp_bias",
                                   "norm_before_fc",
                                   "norm_before_residual",
                                   "norm_output",
                                   "num_attention_heads",
                                   "num_key_value_heads",
                                   "rms_norm_eps",
                                   "rope_parameters",
                                   "rope_scaling",
                                   "rope_theta",
                                   "sliding_window",
                                   "target_hidden_size",
                                   "transformer_layer_config",
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

static int read_rope(struct head_config *c, const json_t *layer, const char *what)
{
    const json_t *rope = json_object_get(layer, "rope_parameters"),
                 *scaling = json_object_get(layer, "rope_scaling");
    const double def = 10000;
    const char *type = "default";
    if (json_is_object(scaling))
        FAIL(ERR_LIMIT,
             "%s: 'rope_scaling': expected nothing, found an object: heads with scaled RoPE are not computed",
             what);
    TRY(json_get_double(layer, "rope_theta", what, &def, &c->rope_theta));
    if (!json_is_object(rope))
        return 0;
    const double theta = c->rope_theta;
    TRY(json_get_string(rope, "rope_type", what, "default", &type));
    if (strcmp(type, "default") != 0)
        FAIL(ERR_LIMIT, "%s: 'rope_type': expected \"default\", found \"%s\"", what, type);
    return json_get_double(rope, "rope_theta", what, &theta, &c->rope_theta);
}

static int read_layer(struct head_config *c, const json_t *o, const char *what)
{
    const char *act = "silu", *type = "llama";
    const double def = 1e-6;
    const long one = 1;
    double eps = 0;
    long layers = 0;
    TRY(check_keys(o, what));
    TRY(json_get_string(o, "model_type", what, "llama", &type));
    if (strcmp(type, "llama") != 0)
        FAIL(ERR_LIMIT, "%s: 'model_type': expected \"llama\", found \"%s\"", what, type);
    TRY(json_get_string(o, "hidden_act", what, "silu", &act));
    if (strcmp(act, "silu") != 0)
        FAIL(ERR_LIMIT, "%s: 'hidden_act': expected \"silu\", found \"%s\"", what, act);
    TRY(json_get_int(o, "num_hidden_layers", what, 1, 1, &one, &layers));
    TRY(get_int(o, "hidden_size", what, 0, &c->hidden));
    TRY(get_int(o, "intermediate_size", what, 0, &c->ffn));
    TRY(get_int(o, "num_attention_heads", what, 0, &c->heads));
    TRY(get_int(o, "num_key_value_heads", what, c->heads, &c->kv_heads));
    TRY(get_int(o, "head_dim", what, c->hidden / c->heads, &c->head_dim));
    TRY(json_get_double(o, "rms_norm_eps", what, &def, &eps));
    c->rms_eps = (float)eps;
    if (c->head_dim % 16 || c->head_dim > 1024 || c->heads % c->kv_heads || c->ffn % 16)
        FAIL(ERR_LIMIT,
             "%s: expected head_dim and intermediate_size in steps of 16, and heads in equal groups, found "
             "%d, %d, %d / %d",
             what, c->head_dim, c->ffn, c->heads, c->kv_heads);
    const json_t *types = json_object_get(o, "layer_types");
    if (json_is_array(types) && json_is_string(json_array_get(types, 0)) &&
        strcmp(json_string_value(json_array_get(types, 0)), "sliding_attention") == 0)
        TRY(get_int(o, "sliding_window", what, 0, &c->window));
    TRY(refuse_flag(o, "attention_bias", what));
    TRY(refuse_flag(o, "mlp_bias", what));
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

static int read_config(struct head_config *c, const struct model_config *t, const json_t *o, const char *what)
{
    const json_t *inner = json_object_get(o, "transformer_layer_config");
    const int speculators = json_is_object(inner), off = 0;
    const json_t *layer = speculators ? inner : o;
    int vocab = 0, norm_output = 0;
    head_config_like(c, t);
    TRY(check_keys(o, what));
    TRY(read_layer(c, layer, what));
    TRY(get_int(layer, "vocab_size", what, 0, &vocab));
    TRY(get_int(o, "draft_vocab_size", what, vocab, &c->vocab));
    TRY(get_int(o, "target_hidden_size", what, c->hidden, &c->target_hidden));
    TRY(json_get_bool(o, "norm_before_residual", what, &speculators, &c->norm_before_residual));
    TRY(json_get_bool(o, "fc_norm", what, &off, &c->fc_norm));
    TRY(json_get_bool(o, "norm_output", what, speculators ? &off : &(const int){1}, &norm_output));
    c->feed_normed = speculators && norm_output;
    if (!speculators && !norm_output)
        FAIL(ERR_LIMIT,
             "%s: 'norm_output': expected true, found false: lm_head without a norm is not computed", what);
    TRY(refuse_flag(o, "norm_before_fc", what));
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
        .rope_theta = 10000,
        .layer = {clamp(2, last), clamp(t->layers / 2, last), clamp(t->layers - 3, last)}};
}

int head_config_read(struct head_config *c, const struct model_config *target, const char *dir)
{
    char path[4096];
    json_t *o = NULL;
    snprintf(path, sizeof path, "%s/config.json", dir);
    TRY(json_read_file(path, &o));
    const int layers_ok = json_is_object(o);
    int rc = layers_ok ? read_config(c, target, o, path)
                       : ERR_SET(ERR_FORMAT, "%s: expected an object, found %s", path, json_type_name(o));
    const json_t *inner = json_object_get(o, "transformer_layer_config");
    const json_t *n = json_object_get(json_is_object(inner) ? inner : o, "num_hidden_layers");
    if (rc == 0 && json_is_integer(n) && json_integer_value(n) != 1)
        rc = ERR_SET(ERR_LIMIT, "%s: 'num_hidden_layers': expected 1", path);
    json_decref(o);
    return rc;
}

/* model_config_quant: which rounded checkpoints are read. The dtypes in the files say which tensors are
 * rounded (engine/weights.c); here those are refused whose numbers mean something else than number * scale.
 */
#include "engine/err.h"
#include "engine/model_config_keys.h"
#include <string.h>

#define READ "this program reads FP8 of compressed-tensors (float-quantized) and of modelopt (FP8)"

static int expect_text(const json_t *o, const char *key, const char *want, const char *what)
{
    const char *found = NULL;
    TRY(json_get_string(o, key, what, want, &found));
    if (strcmp(found, want) != 0)
        FAIL(ERR_LIMIT, "%s: 'quantization_config': '%s' '%.80s' is not computed; " READ, what, key, found);
    return 0;
}

/* One scale a matrix or one an output; groups and blocks of inputs would need more. */
static int check_weights(const json_t *group, const char *what)
{
    const json_t *w = json_object_get(group, "weights");
    const char *strategy = NULL;
    const long eight = 8;
    long bits = 0;
    if (!json_is_object(w))
        FAIL(ERR_FORMAT, "%s: 'config_groups': expected an object 'weights' in each, found %s", what,
             json_type_name(w));
    TRY(json_get_int(w, "num_bits", what, 1, 64, &eight, &bits));
    if (bits != 8)
        FAIL(ERR_LIMIT, "%s: 'quantization_config': 'num_bits' %ld is not computed; " READ, what, bits);
    TRY(expect_text(w, "type", "float", what));
    TRY(json_get_string(w, "strategy", what, "tensor", &strategy));
    if (strcmp(strategy, "tensor") != 0 && strcmp(strategy, "channel") != 0)
        FAIL(
            ERR_LIMIT,
            "%s: 'quantization_config': 'strategy' '%.80s' is not computed; this program computes tensor and "
            "channel",
            what, strategy);
    return 0;
}

static int check_groups(const json_t *quant, const char *what)
{
    const json_t *groups = json_object_get(quant, "config_groups");
    const char *name;
    json_t *group;
    if (groups && !json_is_null(groups) && !json_is_object(groups))
        FAIL(ERR_FORMAT, "%s: 'config_groups': expected an object, found %s", what, json_type_name(groups));
    json_object_foreach((json_t *)groups, name, group) TRY(check_weights(group, what));
    return 0;
}

int model_config_quantised(const json_t *o, const char *what)
{
    const json_t *quant = json_object_get(o, "quantization_config");
    const char *method = NULL;
    if (!quant || json_is_null(quant))
        return 0;
    if (!json_is_object(quant))
        FAIL(ERR_FORMAT, "%s: 'quantization_config': expected an object or null, found %s", what,
             json_type_name(quant));
    TRY(json_get_string(quant, "quant_method", what, NULL, &method));
    if (strcmp(method, "compressed-tensors") == 0)
        TRY(expect_text(quant, "format", "float-quantized", what));
    else if (strcmp(method, "modelopt") == 0)
        TRY(expect_text(quant, "quant_algo", "FP8", what));
    else
        FAIL(ERR_LIMIT, "%s: 'quantization_config': 'quant_method' '%.80s' is not computed; " READ, what,
             method);
    return check_groups(quant, what);
}

int model_config_modelopt(const json_t *o, const char *what)
{
    const json_t *quant = json_object_get(o, "quantization");
    const char *algo = NULL;
    if (!json_is_object(quant))
        FAIL(ERR_FORMAT, "%s: 'quantization': expected an object, found %s", what, json_type_name(quant));
    TRY(json_get_string(quant, "quant_algo", what, NULL, &algo));
    if (strcmp(algo, "FP8") != 0)
        FAIL(ERR_LIMIT, "%s: 'quant_algo' '%.80s' is not computed; " READ, what, algo);
    return 0;
}

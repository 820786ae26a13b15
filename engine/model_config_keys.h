/* model_config_keys: what the readers of a config.json share. Private to model_config*.c and head_config.c. */
#ifndef ENGINE_MODEL_CONFIG_KEYS_H
#define ENGINE_MODEL_CONFIG_KEYS_H
#include "engine/json.h"
#include "engine/model_config.h"

/* Bounds that keep every product of two dimensions inside an int where kernels count in int. */
enum {
    VOCAB_MAX = 1 << 24,
    HIDDEN_MAX = 1 << 20,
    FFN_MAX = 1 << 24,
    HEADS_MAX = 4096,
    HEAD_DIM_MAX = 4096,
    POSITIONS_MAX = 1 << 28,
    EXPERTS_MAX = 4096,
    LANES = 16 /* kernels work on sixteen outputs at a time */
};

/* An integer in [1, hi], a number in [lo, hi]; fallback NULL: the key must be there. */
int  model_config_dim(const json_t *o, const char *key, const char *what, long hi, const int *fallback, int *out);
int  model_config_range(const json_t *o, const char *key, const char *what, double lo, double hi, const double *fallback, float *out);
/* rope_theta, rope_parameters, rope_scaling: the rope_* of c; the default theta is Llama 4's where c says llama4. */
int  model_config_rope(struct model_config *c, const json_t *o, const char *what);
/* The keys that only Llama 4 has, and both widths; layers and shapes are there already. */
int  model_config_llama4(struct model_config *c, const json_t *text, const char *what);
/* quantization_config, of any object that may hold one: ERR_LIMIT for a format that is not read. */
int  model_config_quantised(const json_t *o, const char *what);
/* The same of ModelOpt's hf_quant_config.json. */
int  model_config_modelopt(const json_t *o, const char *what);
#endif

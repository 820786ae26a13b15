/* model_config: config.json of a Hugging Face directory as plain numbers, every one checked. Keys and defaults:
 * transformers' LlamaConfig. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

struct model_config {
    char architecture[64]; /* "LlamaForCausalLM" */
    int vocab, hidden, ffn, layers, heads, kv_heads, head_dim, max_positions;
    int tied;              /* output head is the embedding */
    float rms_eps, rope_theta;
    int rope_llama3;       /* 1: the four numbers below apply */
    float rope_factor, rope_low, rope_high, rope_original;
};

/* Read and check DIR/config.json. ERR_IO, ERR_FORMAT (key, expected, found), ERR_LIMIT for an architecture, activation,
 * bias or rope scaling that this program does not compute: the message lists what it does. */
int  model_config_read(struct model_config *c, const char *dir);
int  model_config_parse(struct model_config *c, const char *json, unsigned long n, const char *what);
/* A published shape by name ("smollm2-135m", "llama-3.1-8b", ...), for random weights. ERR_CONFIG lists the names. */
int  model_config_named(struct model_config *c, const char *name);
/* inv_freq [head_dim / 2], scaling applied (model-independent formula: theta^(-2j / head_dim), llama3 bands). */
void model_config_inv_freq(const struct model_config *c, float *inv_freq);
/* Parameters, embedding counted once when tied. */
unsigned long model_config_params(const struct model_config *c);
#endif

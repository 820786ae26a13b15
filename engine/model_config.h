/* model_config: config.json of a Hugging Face directory as plain numbers, every one checked. Keys and defaults:
 * transformers' LlamaConfig and Llama4TextConfig. */
#ifndef ENGINE_MODEL_CONFIG_H
#define ENGINE_MODEL_CONFIG_H

enum { MODEL_LAYERS_MAX = 512 };
enum layer_kind {
    LAYER_NOPE = 1, /* no rotation, full attention, queries scaled by the temperature */
    LAYER_MOE = 2   /* router, experts and a shared expert instead of one MLP */
};

struct model_config {
    char architecture[64]; /* "LlamaForCausalLM", "Llama4ForCausalLM", "Llama4ForConditionalGeneration" (its text part) */
    int vocab, hidden, ffn, layers, heads, kv_heads, head_dim, max_positions;
    int tied;              /* output head is the embedding */
    float rms_eps, rope_theta;
    int rope_llama3;       /* 1: the four numbers below apply */
    float rope_factor, rope_low, rope_high, rope_original;

    /* Llama 4, all 0 for others. ffn is then the width of each routed expert and of the shared one. */
    int llama4;
    unsigned char kind[MODEL_LAYERS_MAX]; /* of each layer, enum layer_kind or'ed */
    int experts, top_k;
    int ffn_dense;              /* width of the layers that are not MoE */
    int ffn_pad, ffn_dense_pad; /* so many of ffn and ffn_dense, the last ones, are zeros that no file holds: 16 divides both */
    int chunk;                  /* layers that rotate attend within blocks of so many positions; 0: to all before */
    int qk_norm;                /* in the layers that rotate, after the rotation, without weights */
    float temperature_scale, temperature_floor; /* NoPE: q *= 1 + scale ln(1 + floor((pos + 1) / floor)); scale 0: off */
    int rope_interleaved;       /* of the file: q and k rotate pairs (2j, 2j + 1). A loaded model's rotate (j, j + head_dim / 2), as all others */
};

/* Read and check DIR/config.json. ERR_IO, ERR_FORMAT (key, expected, found), ERR_LIMIT for an architecture, activation,
 * bias or rope scaling that this program does not compute: the message lists what it does. */
int  model_config_read(struct model_config *c, const char *dir);
int  model_config_parse(struct model_config *c, const char *json, unsigned long n, const char *what);
/* A published shape by name ("smollm2-135m", "llama-3.1-8b", "maverick", ...), for random weights. ERR_CONFIG lists the names. */
int  model_config_named(struct model_config *c, const char *name);
/* inv_freq [head_dim / 2], scaling applied (model-independent formula: theta^(-2j / head_dim), llama3 bands). */
void model_config_inv_freq(const struct model_config *c, float *inv_freq);
/* Parameters, embedding counted once when tied. */
unsigned long model_config_params(const struct model_config *c);
#endif

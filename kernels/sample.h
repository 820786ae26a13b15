/* sample: from a row of logits to the target distribution p after all sampling transforms, and tokens drawn from it.
 * Order of transforms, as in transformers and vLLM's defaults: temperature, top-k, top-p, min-p, each on what the one
 * before left, renormalised. Ties: the lower id stands first.
 * All randomness is philox(seed, request, position, use, index), so that a draw is a function of its arguments. */
#ifndef KERNELS_SAMPLE_H
#define KERNELS_SAMPLE_H
#include "kernels/philox.h"

struct sample_filter {
    float temperature; /* > 0; greedy never comes here */
    int top_k;         /* 0: off */
    float top_p;       /* (0, 1]; 1: off. Keeps the smallest set of most probable ids whose sum reaches top_p */
    float min_p;       /* [0, 1]; 0: off. Keeps ids with p >= min_p * max p */
};

struct sample_key {
    uint64_t seed;
    uint32_t request, position;
};

/* The distribution of one row: kept ids ascending with their probabilities. Arrays [vocab], the caller's; after a
 * top-k, top-p or min-p n is the number kept, else vocab. sum of prob = 1 up to rounding. */
struct sample_dist {
    int n;
    int *id;
    float *prob;
    float *work; /* [vocab] or more, scratch of sample_dist_from_logits */
};

/* max is the row's largest logit (logit_stats). A logit of NaN has probability 0; a row without any probability at all
 * (nothing but NaN and infinities) gives id 0 alone. */
void sample_dist_from_logits(struct sample_dist *d, const float *logits, int vocab, float max, const struct sample_filter *f);
/* p(v), 0 when v was filtered out: binary search. */
float sample_dist_prob(const struct sample_dist *d, int v);

/* Inverse CDF over ascending ids with one uniform of (key, use, index). weight[i] >= 0 need not be normalised;
 * an id of weight 0 is never drawn. Returns the position in the arrays. */
int sample_categorical(const float *weight, int n, const struct sample_key *key, enum philox_use use, uint32_t index);

/* Gumbel-max: argmax over kept ids of log prob + g(v), g = -log(-log u_v), u_v = uniform of (key, PHILOX_TOKEN, v).
 * Draws from prob, and the noise of an id does not depend on prob: two distributions under one key agree often.
 * Ids that cannot win are skipped without evaluating their noise, which changes no result. Returns the id. */
int sample_gumbel(const struct sample_dist *d, const struct sample_key *key);
#endif

/* logits: what a step needs to know of one row of logits beyond the row itself.
 * shapes   logits f32 [rows, vocab]; out [rows]
 * needs    vocab >= 1, at least one finite logit, none NaN or +inf; of other rows only argmax is sure to be an id
 * math     f32 exponentials, sums in 16 lanes by id modulo 16, lanes added pairwise; argmax: lowest id among equals.
 *          A row's bits depend on the row alone. Entropy in nats: lse - sum p * logit. */
#ifndef KERNELS_LOGITS_H
#define KERNELS_LOGITS_H
#include "kernels/types.h"

struct logit_stats {
    int argmax;      /* lowest id with the largest logit */
    float max;       /* its logit */
    float second;    /* largest logit among the other ids: max - second is the top-two gap; -inf when vocab = 1 */
    float lse;       /* log sum exp of all logits: log p(v) = logit[v] - lse */
    float entropy;   /* of softmax(logits), nats; 0 unless asked for */
};
struct logits {
    const float *logits;
    struct logit_stats *out;
    int rows, vocab, threads;
    int with_entropy; /* 0 or 1; a multiply-add an id more */
};
void logits_ref(const struct logits *a); /* double sums */
/* 1 + number of ids that stand before v: larger logit, or equal and lower id. */
int logits_rank(const float *row, int vocab, int v);
#endif

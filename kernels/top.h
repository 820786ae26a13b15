/* top: of each row of logits the k best ids, best first, the lower id among equals, a NaN behind all numbers, and their log-probabilities.
 *   log_p[r, i] = x - (max + ln sum over v of exp(row[v] - max)), x the i-th largest of row = logits[from[r], :]
 *   id[r, i]    = map[v] of its place v, or v
 * Rows with from[r] < 0 stay as they were.
 * shapes   logits f32 [any, vocab]; from i32 [rows], NULL: from[r] = r; map i32 [vocab] or NULL; id i32 [rows, k], log_p f32 [rows, k]
 * needs    1 <= k <= TOP_MAX, k <= vocab
 * math     the choice is exact; the sum: ref double, CUDA f32 in an order fixed by vocab alone. Both find the same ids in the same logits
 * moves    4 bytes a logit; CUDA reads a row twice, the second time from the caches */
#ifndef KERNELS_TOP_H
#define KERNELS_TOP_H
#include "kernels/types.h"

enum { TOP_MAX = 32 };

struct top {
    const float *logits;
    const int *from, *map;
    int *id;
    float *log_p;
    int rows, vocab, k;
};
void top_ref(const struct top *a); /* the CPU's path too */
KERN_API int top_cuda(const struct top *a, void *stream);
#endif

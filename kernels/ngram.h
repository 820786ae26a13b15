/* ngram: the text repeats itself. The last tokens are looked up in the text before them, the longest n-gram first, and what followed
 * there is the tree. Sizes max..min; of each size its places in the order of `match`, at most NGRAM_VISITS a branch; what follows a place is added as
 * a path, cut at the end of what is searched, until `branches` places have added nodes.
 * With `match` first and one branch this is prompt lookup as transformers (min 1) and vLLM do it.
 * shapes   seq [slots], text i32 [slots, cap]; out: trees of all live slots, no deeper than step_depth; 0 nodes for the others
 * math     exact: CPU and CUDA propose the same
 * moves    4 bytes a token of the text and size, at most */
#ifndef KERNELS_NGRAM_H
#define KERNELS_NGRAM_H
#include "kernels/step.h"

enum { NGRAM_SIZE_MAX = 32, NGRAM_BRANCHES_MAX = 64, NGRAM_VISITS = 16 };
enum ngram_match { NGRAM_FIRST, NGRAM_RECENT };
enum ngram_scope { NGRAM_ALL, NGRAM_PROMPT }; /* of the text is searched */

struct ngram {
    const struct seq_state *seq;
    const int *text;
    int cap;
    const struct trees *trees; /* the struct itself is host memory */
    int min, max, branches;    /* 1 <= min <= max */
    enum ngram_match match;
    enum ngram_scope scope;
    int64_t *begin;            /* backend: gets the time where it is 0 */
};
void ngram_ref(const struct ngram *a); /* the CPU's path too; leaves `begin` alone */
KERN_API int ngram_cuda(const struct ngram *a, void *stream);
#endif

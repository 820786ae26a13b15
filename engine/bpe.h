/* bpe: byte-pair merging. A rule says that token `left` before token `right` may become token `id`; of all pairs
 * in a row that have a rule, the one with the lowest rank merges first, of equal ones the leftmost. */
#ifndef ENGINE_BPE_H
#define ENGINE_BPE_H
#include <stddef.h>
#include <stdint.h>

struct bpe_rule {
    int left, right, id; /* left < 0: a free slot */
    uint32_t rank;
};
struct bpe {
    struct bpe_rule *slots; /* owned [mask + 1], at most half full: open addressing, linear probing */
    size_t mask;
};
/* What one thread needs to merge; grows with the longest row. */
struct bpe_scratch {
    struct bpe_symbol *symbols; /* owned [cap] */
    uint64_t *heap;             /* owned [3 * cap] */
    int cap;
};

int  bpe_init(struct bpe *b, size_t n_rules);
void bpe_deinit(struct bpe *b); /* a zeroed struct is fine */
/* Ids are not negative; a later rule for the same pair replaces the earlier one. No more than n_rules calls. */
void bpe_add(struct bpe *b, int left, int right, int id, uint32_t rank);
/* Merge ids [n] in place; *n_out are left. ERR_MEMORY. */
int  bpe_merge(const struct bpe *b, struct bpe_scratch *s, int *ids, int n, int *n_out);
void bpe_scratch_deinit(struct bpe_scratch *s); /* a zeroed struct is fine */
#endif

/* bpe: the row is a doubly linked list; each symbol knows the rank of the rule for itself and its right
 * neighbour. Short rows, nearly all of them, are searched for the lowest rank again and again; long ones keep
 * the candidates in a heap, so that a row of n symbols costs n log n whatever it holds. An entry of the heap
 * is stale once the symbol's rank is another one: a rank belongs to one pair only, and a pair's text never
 * comes back. */
#include "engine/bpe.h"
#include "engine/err.h"
#include <limits.h>
#include <stdlib.h>

enum { SHORT = 24 };

struct bpe_symbol {
    int id, prev, next; /* prev, next: -1 at the ends */
    uint32_t rank;      /* of the rule for (this, next); NO_RULE without one, and for swallowed symbols */
    int merged;         /* that rule's id */
};
static const uint32_t NO_RULE = UINT32_MAX;

static size_t slot_of(const struct bpe *b, int left, int right)
{
    uint64_t key = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    key *= 0x9E3779B97F4A7C15u;
    size_t at = (size_t)(key ^ key >> 32) & b->mask;
    while (b->slots[at].left >= 0 && (b->slots[at].left != left || b->slots[at].right != right))
        at = (at + 1) & b->mask;
    return at;
}

int bpe_init(struct bpe *b, size_t n_rules)
{
    size_t slots = 16;
    while (slots < 2 * n_rules)
        slots *= 2;
    b->slots = malloc(slots * sizeof *b->slots);
    if (!b->slots)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for %zu merges", n_rules);
    for (size_t i = 0; i < slots; i++)
        b->slots[i] = (struct bpe_rule){-1, -1, -1, NO_RULE};
    b->mask = slots - 1;
    return 0;
}

void bpe_deinit(struct bpe *b)
{
    free(b->slots);
    *b = (struct bpe){0};
}

void bpe_add(struct bpe *b, int left, int right, int id, uint32_t rank)
{
    b->slots[slot_of(b, left, right)] = (struct bpe_rule){left, right, id, rank};
}

/* Look up the rule for symbol i and its right neighbour. */
static void look_right(const struct bpe *b, struct bpe_symbol *s, int i)
{
    const struct bpe_rule *rule = NULL;
    if (s[i].next >= 0)
        rule = &b->slots[slot_of(b, s[i].id, s[s[i].next].id)];
    s[i].rank = rule ? rule->rank : NO_RULE;
    s[i].merged = rule ? rule->id : -1;
}

/* Symbol i swallows its right neighbour; the two pairs it now belongs to get new ranks. */
static void swallow(const struct bpe *b, struct bpe_symbol *s, int i)
{
    int gone = s[i].next;
    s[i].id = s[i].merged;
    s[i].next = s[gone].next;
    s[gone].rank = NO_RULE;
    if (s[i].next >= 0)
        s[s[i].next].prev = i;
    look_right(b, s, i);
    if (s[i].prev >= 0)
        look_right(b, s, s[i].prev);
}

static void merge_short(const struct bpe *b, struct bpe_symbol *s)
{
    for (;;) {
        int best = 0;
        for (int i = s[0].next; i >= 0; i = s[i].next)
            if (s[i].rank < s[best].rank)
                best = i;
        if (s[best].rank == NO_RULE)
            return;
        swallow(b, s, best);
    }
}

/* Binary heap of rank << 32 | position: lowest rank first, then leftmost. */
static void push(uint64_t *heap, size_t *n, const struct bpe_symbol *s, int i)
{
    if (i < 0 || s[i].rank == NO_RULE)
        return;
    uint64_t key = (uint64_t)s[i].rank << 32 | (uint32_t)i;
    size_t at = (*n)++;
    for (; at > 0 && heap[(at - 1) / 2] > key; at = (at - 1) / 2)
        heap[at] = heap[(at - 1) / 2];
    heap[at] = key;
}

static uint64_t pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0], key = heap[--*n];
    size_t at = 0;
    for (size_t child = 1; child < *n; child = 2 * at + 1) {
        if (child + 1 < *n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= key)
            break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = key;
    return top;
}

static void merge_long(const struct bpe *b, struct bpe_symbol *s, int n, uint64_t *heap)
{
    size_t n_heap = 0;
    for (int i = 0; i < n; i++)
        push(heap, &n_heap, s, i);
    while (n_heap > 0) {
        uint64_t top = pop(heap, &n_heap);
        int i = (int)(uint32_t)top;
        if (s[i].rank != (uint32_t)(top >> 32))
            continue;
        swallow(b, s, i);
        push(heap, &n_heap, s, i);
        push(heap, &n_heap, s, s[i].prev);
    }
}

/* Every merge pushes two entries and there are fewer merges than symbols: 3 n entries are enough. */
static int reserve(struct bpe_scratch *s, int n)
{
    if (n <= s->cap)
        return 0;
    size_t cap = (size_t)n + (size_t)n / 2 + 64;
    bpe_scratch_deinit(s);
    s->symbols = malloc(cap * sizeof *s->symbols);
    s->heap = malloc(3 * cap * sizeof *s->heap);
    if (!s->symbols || !s->heap)
        FAIL(ERR_MEMORY, "tokenizer: out of memory for a piece of %d bytes", n);
    s->cap = cap < INT_MAX ? (int)cap : INT_MAX;
    return 0;
}

int bpe_merge(const struct bpe *b, struct bpe_scratch *scratch, int *ids, int n, int *n_out)
{
    if (n < 2) {
        *n_out = n;
        return 0;
    }
    TRY(reserve(scratch, n));
    struct bpe_symbol *s = scratch->symbols;
    for (int i = 0; i < n; i++)
        s[i] = (struct bpe_symbol){.id = ids[i], .prev = i - 1, .next = i + 1 < n ? i + 1 : -1};
    for (int i = 0; i < n; i++)
        look_right(b, s, i);
    if (n <= SHORT)
        merge_short(b, s);
    else
        merge_long(b, s, n, scratch->heap);
    int left = 0;
    for (int i = 0; i >= 0; i = s[i].next)
        ids[left++] = s[i].id;
    *n_out = left;
    return 0;
}

void bpe_scratch_deinit(struct bpe_scratch *s)
{
    free(s->symbols);
    free(s->heap);
    *s = (struct bpe_scratch){0};
}

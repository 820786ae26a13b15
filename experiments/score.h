/* score: teacher forcing. A model reads a prompt and a given answer; what it thought of each token of the answer is recorded. Beside
 * it a reference reads the same text, and the two distributions are compared at every position. */
#ifndef EXPERIMENTS_SCORE_H
#define EXPERIMENTS_SCORE_H
#include "engine/forward.h"
#include "experiments/trace.h"

enum { SCORE_ROWS = 64 }; /* most tokens judged in a pass */

struct score; /* opaque */

/* Both models are borrowed; reference NULL: the model is its own. cap: most tokens of a text. Allocates everything. */
int  score_open(struct score **out, struct model *m, struct model *reference, int cap);
void score_close(struct score *s); /* accepts NULL */
size_t score_bytes(const struct score *s);
/* The answer's tokens [n >= 1] after the prompt's [n_prompt >= 1], which together fit the cap. out [n]: all but `request`.
 * ns_prefill: the time of the prompt. ERR_LIMIT: an id outside a vocabulary, a text longer than the context. */
int  score_answer(struct score *s, const int *prompt, int n_prompt, const int *answer, int n, struct trace_score *out,
                  int64_t *ns_prefill);

/* KL(p || q) in nats, p and q the softmax of rows of logits [vocab], in double: sum p (log p - log q), never below 0 (Kullback and
 * Leibler 1951). */
double score_kl(const float *p, const float *q, int vocab);
#endif

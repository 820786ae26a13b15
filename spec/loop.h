/* loop: speculative decoding. One step drafts a tree for every active sequence, verifies all trees in one pass of the
 * target, accepts by the rule and commits text and cache. The last token of a text, the root, has no cache cell yet:
 * it is verified as the first row of its tree, so the prompt's last token starts the very same loop and the first
 * step already emits. Plain decoding is this loop with a draft that proposes nothing.
 * All of a step happens on the backend, in its memory, as one list of operations; the host enqueues steps (a device: up to two behind the one it
 * waits for), reads a ring of records, and decides nothing but where a stop string ends an answer. Drafts that propose on the host are
 * the exception: with them every step is drained before the next.
 * Requests join when a slot is free and leave when done (continuous batching); an answer's bits do not depend on its neighbours. */
#ifndef SPEC_LOOP_H
#define SPEC_LOOP_H
#include "engine/forward.h"
#include "spec/accept.h"
#include "spec/draft.h"
#include "spec/stop.h"

enum step_flags {
    STEP_FIRST = 1,     /* the request's first step, after its prompt was prefilled */
    STEP_NO_DRAFT = 2,  /* the draft proposed nothing */
    STEP_STOP = 4,      /* the answer ended inside this step by a stop token or string: emitted may be less than accepted + 1 */
    STEP_BUDGET = 8     /* the same by the token budget or the context */
};
enum trace_level { TRACE_STEPS, TRACE_NODES, TRACE_FULL };

struct node_record {
    int token, parent, depth, accepted; /* parent: index within the step, -1 the root */
    float log_q, log_p;   /* natural logs; log_p under softmax(target logits), temperature 1, no filters */
    int rank;             /* of the token under the target, 1 = most probable */
    float entropy, gap;   /* of the target's distribution that judged this node (its parent's row), nats; logit gap of its two best. TRACE_FULL, else 0 */
};

struct step_record {
    int slot;
    void *user;            /* of the request */
    int position;          /* absolute position of the first token this step decided */
    int proposed, depth;   /* nodes, and depth of the deepest */
    int accepted, emitted; /* nodes on the accepted path; tokens that became text, bonus included */
    unsigned flags;
    int pass_rows, pass_seqs; /* rows and sequences of the pass this step was part of, answers that a stop string had cut meanwhile included */
    /* Of the pass, shared by its sequences, by the backend's clock (CPU: the host's; CUDA: the GPU's, read by the step's own kernels):
     *   draft    proposing and laying the rows; a host strategy: the host's time for propose, trees' upload and observe as well
     *   verify   the pass of the target
     *   accept   the rule, what the trace records of nodes, and committing text and cache
     *   total    to the step's end, from whichever was last: the end of the step before, of a prefill in between, or the host beginning to enqueue it
     *   host     total - the others: the device waited for the host */
    int64_t ns_draft, ns_verify, ns_accept, ns_host, ns_total;
    const int *tokens;     /* [emitted] */
    const float *log_p;    /* [emitted], as node_record.log_p */
    const struct node_record *nodes; /* [proposed], NULL with TRACE_STEPS */
    int expert_layers, top_k;        /* layers of experts, 0: the model has none; experts that a row chooses in each */
    const int *distinct;             /* [expert_layers] different experts that the pass's rows chose, its dead ones aside */
    const int *chosen;               /* [1 + proposed, expert_layers, top_k] of the root and the nodes, best first; TRACE_FULL, else NULL */
};

struct spec_request {
    const int *prompt;     /* [n_prompt >= 1], borrowed until it finishes */
    int n_prompt, max_tokens;
    uint32_t request;      /* identity for random numbers and references: the same in every arm */
    void *user;            /* comes back in spec_finished */
};

struct spec_finished {
    int slot;
    void *user;
    enum finish reason;
    const int *tokens;     /* [n] the answer, valid until the slot is used again */
    int n, steps;
    int64_t ns_prefill;    /* prompt processing alone, by the backend's clock */
    int64_t ns_first;      /* from submission to the end of the step that emitted the first token, steps under way before it included */
    int64_t ns_decode;     /* from the first step's end to the last step's end */
};

struct spec_opts {
    const struct draft_ops *draft;
    const double *draft_option;      /* values for draft->options */
    const char *head;                /* see draft_env; borrowed for spec_open */
    int (*reference)(void *ctx, uint32_t request, const int **tokens); /* see draft_env */
    void *reference_ctx;
    const struct accept_rule *rule;
    struct sampling sampling;
    struct stop_rules stop;          /* what it points to is borrowed for the life of the loop */
    int slots, max_depth, max_nodes; /* sequences at once; bounds of a tree */
    int cap;                         /* most tokens of one text: prompt + answer */
    enum trace_level trace;
    int prefill_block;               /* rows a prefill pass, 0: what the backend is best at */
};

struct spec; /* opaque */
int  spec_open(struct spec **out, struct model *m, const struct spec_opts *opts); /* allocates everything */
void spec_close(struct spec *s); /* accepts NULL */
int  spec_free_slots(const struct spec *s);
int  spec_active(const struct spec *s);
/* Take a request into a free slot and enqueue its prompt's prefill. ERR_LIMIT: the prompt, or prompt + max_tokens, exceeds cap. */
int  spec_submit(struct spec *s, const struct spec_request *r);
/* The next step of all active sequences. records [n_records <= slots] and finished [n_finished] are lent until the next call. After
 * an error the sequences are undefined: spec_abort or spec_close. */
struct spec_step {
    const struct step_record *records;
    int n_records;
    const struct spec_finished *finished;
    int n_finished;
};
int  spec_step(struct spec *s, struct spec_step *out);
/* Drop all active sequences; their finish reason would be FINISH_INTERRUPTED, nothing is reported. */
void spec_abort(struct spec *s);
size_t spec_bytes(const struct spec *s); /* memory of the loop itself, KV cache included */
#endif

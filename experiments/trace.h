/* trace: the rows of a result file, as C structs. record_file.c alone knows how they lie in HDF5; writers and readers share
 * this. Names of fields are the names in the file; units and descriptions stand in the tables in record_fields.c. */
#ifndef EXPERIMENTS_TRACE_H
#define EXPERIMENTS_TRACE_H
#include <stdint.h>

/* Schema 2 brought /scores and requests.score_begin, schema 3 /step_experts, /node_experts, where steps have theirs, and what loading took. Older files are
 * read as files without scores and experts. */
enum { TRACE_SCHEMA = 3 };
enum { TRACE_SCORED = 100 }; /* finish of an answer that was given, not generated; apart from every enum finish */

/* /arms: one cell of the sweep */
struct trace_arm {
    char *label, *strategy, *rule; /* "ngram" */
    int32_t lossy;                 /* 1: the rule changes outputs */
    char *config;                  /* the cell's whole configuration, YAML */
};
/* /prompts: one turn of one prompt */
struct trace_prompt {
    char *dataset, *id, *category;
    int32_t index, turn;           /* struct prompt.index; 0, 1, ... */
    char *text;                    /* the user's message */
};
/* /requests: one answer, generated or (finish TRACE_SCORED) given */
struct trace_request {
    int32_t arm, prompt;           /* rows of /arms and /prompts */
    int32_t repeat;
    uint32_t request;              /* workload_request_id */
    int64_t seed;
    int64_t prompt_begin, prompt_tokens; /* rows of /prompt_tokens */
    int64_t token_begin, tokens;   /* rows of /tokens */
    int64_t step_begin, steps;     /* rows of /steps */
    int32_t finish;                /* enum finish, or TRACE_SCORED */
    int32_t concurrency;           /* workload.concurrency it ran under */
    int64_t ns_prefill, ns_first, ns_decode; /* struct spec_finished */
    int64_t started;               /* submission, ns since the run's start */
    uint64_t hash;                 /* FNV-1a 64 of the emitted ids as little-endian int32 */
    int64_t score_begin;           /* rows of /scores: `tokens` of them when the answer was scored, else none */
};
/* /tokens: one token of an answer; /prompt_tokens holds plain int32 ids */
struct trace_token {
    int32_t id;
    int64_t request;
    float log_p;
};
/* /steps */
struct trace_step {
    int64_t request;
    int32_t position, proposed, depth, accepted, emitted;
    uint32_t flags;                /* enum step_flags */
    int32_t pass_rows, pass_seqs;
    int64_t ns_draft, ns_verify, ns_accept, ns_host, ns_total;
    int64_t node_begin;            /* first row of /nodes; `proposed` rows when the trace level has nodes */
    int32_t experts;               /* distinct experts of the pass, summed over its layers of experts; 0 for dense models */
    int32_t expert_layers, top_k;  /* layers of experts; experts of a row in each */
    int64_t expert_begin;          /* first row of /step_experts, plain int32: distinct experts of each layer */
    int64_t chosen_begin;          /* first row of /node_experts, plain int32, which with level full holds what the root and the
                                      nodes chose: (1 + proposed) * expert_layers * top_k ids, a node's together, best first */
    int32_t chosen;                /* so many rows of it */
};
/* /nodes */
struct trace_node {
    int64_t step;
    int32_t token, parent, depth, accepted;
    float log_q, log_p;
    int32_t rank;
    float entropy, gap;
};

/* /scores: one token of a scored answer, in order; the reference is the same checkpoint with its numbers as stored */
struct trace_score {
    int64_t request;
    int32_t position, token;       /* absolute position */
    float log_p;
    int32_t rank;                  /* 1: the most probable */
    float entropy;
    int32_t top1, agree;           /* 1: the model's most probable token is this one, is the reference's */
    float kl;                      /* KL(reference || model) */
};

/* What a run says of itself: root attributes. Strings owned, never NULL. */
struct trace_meta {
    int32_t schema;
    char *status;                  /* "running", "complete", "interrupted" */
    char *config;                  /* the whole configuration with its sweep, YAML */
    char *version, *git_commit, *build; /* "0.1.0"; "abc1234" or "abc1234-dirty" or "unknown"; compiler and flags */
    char *device, *isa, *host;     /* what computed: CPU model, instruction set, kernel release */
    char *libraries;               /* "hdf5 1.10.8, jansson 2.14, ..." */
    int32_t threads;
    uint64_t fingerprint;          /* of the model's weights */
    char *model;                   /* path and architecture */
    char *started, *ended;         /* ISO 8601 UTC; ended "" while running */
    char *slice;                   /* "0/1" */
    char *trace_level;
    uint64_t load_bytes;           /* of the checkpoint that were read; 0: random weights */
    int64_t ns_load, ns_read;      /* loading it, and of that reading, the mean over the threads that read ahead */
};

/* A whole result in memory; row numbers are those of the file. Owned. */
struct trace {
    char *path;
    struct trace_meta meta;
    struct trace_arm *arms;
    struct trace_prompt *prompts;
    struct trace_request *requests;
    struct trace_token *tokens;
    int32_t *prompt_tokens;
    struct trace_step *steps;
    struct trace_node *nodes;
    struct trace_score *scores;
    struct trace_lean *lean;       /* instead of steps: n_steps rows, see trace_lean.h */
    struct trace_judged *judged;
    int64_t *loops;                /* [n_requests], or NULL: tokens that the answer's last loop has, 0 for none */
    int64_t n_judged;
    int32_t *step_experts, *node_experts;
    int64_t n_arms, n_prompts, n_requests, n_tokens, n_prompt_tokens, n_steps, n_nodes, n_scores, n_step_experts, n_node_experts;
};
enum trace_parts {
    TRACE_READ_REQUESTS = 0,
    TRACE_READ_TOKENS = 1,
    TRACE_READ_STEPS = 2,
    TRACE_READ_NODES = 4,
    TRACE_READ_SCORES = 8,
    TRACE_READ_EXPERTS = 16, /* both tables */
    TRACE_READ_ALL = 31,
    TRACE_READ_LEAN = 256,   /* steps in the small form of trace_lean.h, instead of TRACE_READ_STEPS */
    TRACE_READ_JUDGED = 512, /* the same, and the judged nodes, if the trace level kept nodes */
    TRACE_READ_LOOPS = 1024  /* how far answers end in a loop: trace_loop.h */
};

/* arms, prompts, requests and meta always, the rest by parts. ERR_IO; ERR_FORMAT: not a specbed result, a newer schema, a range
 * that points outside its dataset. */
int  trace_read(struct trace *t, const char *path, unsigned parts);
void trace_deinit(struct trace *t); /* a zeroed struct is fine */
void trace_meta_deinit(struct trace_meta *m);
int  trace_is_scored(const struct trace *t); /* 1: the answers were given (a file holds one kind) */
uint64_t trace_hash_tokens(const int32_t *ids, int64_t n);
#endif

/* trace_lean: steps and nodes of a result, read piece by piece and kept small: what analysis asks of them and no more. Ten million steps are
 * 560 MB here and 960 MB as struct trace_step, before their nodes. */
#ifndef EXPERIMENTS_TRACE_LEAN_H
#define EXPERIMENTS_TRACE_LEAN_H
#include "experiments/trace.h"

struct record_file;

enum { TRACE_LEAN_MAX = 65535 }; /* nodes, tokens, sequences, rows, layers of experts of a step */

struct trace_lean {
    int64_t ns_total, judged_begin; /* first row of trace.judged; the last is before the next step's first */
    float ns_draft, ns_verify, ns_accept, ns_host;
    int32_t position, experts;
    uint16_t proposed, depth, accepted, emitted, flags, pass_seqs, pass_rows, expert_layers;
};

/* A node that the rule looked at: its parent is the root or was accepted. */
struct trace_judged {
    float log_q, entropy;
    int32_t rank;
    uint16_t depth, accepted;
};

/* Fill t->lean, and with TRACE_READ_JUDGED t->judged, from an open file; t has its requests already. The checks of trace_read. */
int trace_lean_read(struct trace *t, struct record_file *f, unsigned parts);
/* Row i of /steps, wherever it is kept: in full or lean (request and node_begin are then -1, and
 * which experts is not known). */
struct trace_step trace_step_at(const struct trace *t, int64_t i);
/* The judged nodes of step i: rows [begin, end) of t->judged. */
void trace_judged_at(const struct trace *t, int64_t i, int64_t *begin, int64_t *end);
#endif

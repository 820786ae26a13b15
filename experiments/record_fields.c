/* record_fields: the tables of record_fields.h. */
#include "experiments/record_fields.h"
#include "experiments/trace.h"

/* FIELD: of every schema; LATER: of this one and those after it. */
#define LATER(type, member, kind, unit, description, since)                                                  \
    {                                                                                                        \
#member, FIELD_##kind, offsetof(struct type, member), unit, description, since                       \
    }
#define FIELD(type, member, kind, unit, description) LATER(type, member, kind, unit, description, 1)

#define ARM(member, kind, unit, description) FIELD(trace_arm, member, kind, unit, description)
static const struct field arm_fields[] = {
    ARM(label, TEXT, "", "what tells this cell of the sweep from the others"),
    ARM(strategy, TEXT, "", "draft strategy"),
    ARM(rule, TEXT, "", "acceptance rule"),
    ARM(lossy, I32, "", "1: the rule changes outputs, 0: it does not"),
    ARM(config, TEXT, "YAML", "the whole configuration of the cell"),
};

#define PROMPT(member, kind, unit, description) FIELD(trace_prompt, member, kind, unit, description)
static const struct field prompt_fields[] = {
    PROMPT(dataset, TEXT, "", "name of the data set"),
    PROMPT(id, TEXT, "", "the data set's own name of the prompt"),
    PROMPT(category, TEXT, "", "the data set's category"),
    PROMPT(index, I32, "", "number of the prompt over all data sets, before limit and slice"),
    PROMPT(turn, I32, "", "turn of the conversation, 0 is the first"),
    PROMPT(text, TEXT, "", "the user's message"),
};

#define REQUEST(member, kind, unit, description) FIELD(trace_request, member, kind, unit, description)
static const struct field request_fields[] = {
    REQUEST(arm, I32, "row of /arms", "cell of the sweep"),
    REQUEST(prompt, I32, "row of /prompts", "what was asked"),
    REQUEST(repeat, I32, "", "repetition, 0 is the first"),
    REQUEST(request, U32, "", "identity for random numbers and references, the same in every arm"),
    REQUEST(seed, I64, "", "seed of the random numbers"),
    REQUEST(prompt_begin, I64, "row of /prompt_tokens", "first token of the prompt"),
    REQUEST(prompt_tokens, I64, "tokens", "length of the prompt, chat template and earlier turns included"),
    REQUEST(token_begin, I64, "row of /tokens", "first token of the answer"),
    REQUEST(tokens, I64, "tokens", "length of the answer"),
    REQUEST(step_begin, I64, "row of /steps", "first step"),
    REQUEST(steps, I64, "steps", "rounds of propose, verify, accept, commit"),
    REQUEST(finish, I32, "",
            "1 stop token, 2 stop string, 3 token budget, 4 context full, 100 scored: the answer was given"),
    REQUEST(concurrency, I32, "requests", "most requests in flight at the same time"),
    REQUEST(ns_prefill, I64, "ns", "prompt processing alone"),
    REQUEST(ns_first, I64, "ns", "from submission to the first emitted token; scored: to the last"),
    REQUEST(ns_decode, I64, "ns", "from the end of the first step to the end of the last"),
    REQUEST(started, I64, "ns", "submission, since the start of the run that made this row"),
    REQUEST(hash, U64, "", "FNV-1a 64 of the answer's token ids as little-endian int32"),
    LATER(trace_request, score_begin, I64, "row of /scores",
          "first token of the answer; `tokens` rows when it was scored, else none", 2),
};

static const struct field prompt_token_fields[] = {
    {"", FIELD_I32, 0, "", "token id", 1},
};

#define TOKEN(member, kind, unit, description) FIELD(trace_token, member, kind, unit, description)
static const struct field token_fields[] = {
    TOKEN(id, I32, "", "token id"),
    TOKEN(request, I64, "row of /requests", "the answer it belongs to"),
    TOKEN(log_p, F32, "nats", "log probability under the target at temperature 1, without filters"),
};

#define STEP(member, kind, unit, description) FIELD(trace_step, member, kind, unit, description)
static const struct field step_fields[] = {
    STEP(request, I64, "row of /requests", "the answer it belongs to"),
    STEP(position, I32, "tokens", "absolute position of the first token that the step decided"),
    STEP(proposed, I32, "nodes", "draft nodes verified"),
    STEP(depth, I32, "nodes", "depth of the deepest draft node"),
    STEP(accepted, I32, "nodes", "draft nodes accepted, before stop or budget cut the text"),
    STEP(emitted, I32, "tokens", "tokens that became text, bonus included"),
    STEP(flags, U32, "bits",
         "1 first step, 2 nothing proposed, 4 ended by a stop, 8 ended by budget or context"),
    STEP(pass_rows, I32, "rows", "rows of the verification pass, all sequences"),
    STEP(pass_seqs, I32, "sequences", "sequences in the verification pass"),
    STEP(ns_draft, I64, "ns", "proposing, for the whole pass"),
    STEP(ns_verify, I64, "ns", "the target's pass"),
    STEP(ns_accept, I64, "ns", "the acceptance rule, for the whole pass"),
    STEP(ns_host, I64, "ns", "the rest of the step, for the whole pass"),
    STEP(ns_total, I64, "ns", "the whole step, shared by the sequences of the pass"),
    STEP(node_begin, I64, "row of /nodes", "first node; `proposed` rows unless the trace level is steps"),
    STEP(experts, I32, "experts",
         "distinct experts of the pass, summed over its layers of experts; 0 for dense models"),
    LATER(trace_step, expert_layers, I32, "layers", "layers of experts", 3),
    LATER(trace_step, top_k, I32, "experts", "experts that a row chooses in each", 3),
    LATER(trace_step, expert_begin, I64, "row of /step_experts", "first layer; `expert_layers` rows", 3),
    LATER(trace_step, chosen_begin, I64, "row of /node_experts",
          "first choice; `chosen` rows, by the root and then each node, by layer, best first", 3),
    LATER(trace_step, chosen, I32, "rows",
          "(1 + proposed) * expert_layers * top_k, 0 unless the trace level is full", 3),
};

#define NODE(member, kind, unit, description) FIELD(trace_node, member, kind, unit, description)
static const struct field node_fields[] = {
    NODE(step, I64, "row of /steps", "the step that verified it"),
    NODE(token, I32, "", "token id"),
    NODE(parent, I32, "", "index of the parent within the step, -1: the last token of the text"),
    NODE(depth, I32, "nodes", "1 for children of the last token of the text"),
    NODE(accepted, I32, "", "1: on the accepted path"),
    NODE(log_q, F32, "nats", "log probability under the draft, 0 for drafts without probabilities"),
    NODE(log_p, F32, "nats", "log probability under the target at temperature 1, without filters"),
    NODE(rank, I32, "", "rank under the target, 1 is the most probable"),
    NODE(entropy, F32, "nats",
         "of the target's distribution that judged the node; 0 unless the level is full"),
    NODE(gap, F32, "logits", "between that distribution's two best; 0 unless the level is full"),
};

#define SCORE(member, kind, unit, description) LATER(trace_score, member, kind, unit, description, 2)
static const struct field score_fields[] = {
    SCORE(request, I64, "row of /requests", "the answer it belongs to"),
    SCORE(position, I32, "tokens", "absolute position of the token"),
    SCORE(token, I32, "", "token id"),
    SCORE(log_p, F32, "nats", "log probability under the model at temperature 1, without filters"),
    SCORE(rank, I32, "", "rank under the model, 1 is the most probable"),
    SCORE(entropy, F32, "nats", "of the model's distribution for this position"),
    SCORE(top1, I32, "", "1: the model's most probable token is this one"),
    SCORE(agree, I32, "",
          "1: it is the reference's most probable token too; the reference is the same checkpoint, numbers "
          "as stored"),
    SCORE(kl, F32, "nats", "KL(reference || model) over the whole vocabulary, 0 for the reference itself"),
};

static const struct field step_expert_fields[] = {
    {"", FIELD_I32, 0, "experts", "distinct experts that the rows of the pass chose in a layer", 3},
};

static const struct field node_expert_fields[] = {
    {"", FIELD_I32, 0, "", "an expert, from 0", 3},
};

#define META(member, kind, unit, description) FIELD(trace_meta, member, kind, unit, description)
const struct field record_meta_fields[] = {
    META(schema, I32, "", "version of this layout"),
    META(status, TEXT, "", "running, complete or interrupted"),
    META(config, TEXT, "", "the whole configuration with its sweep, YAML"),
    META(version, TEXT, "", "version of specbed"),
    META(git_commit, TEXT, "", "commit it was built from"),
    META(build, TEXT, "", "compiler and flags"),
    META(device, TEXT, "", "what computed"),
    META(isa, TEXT, "", "instruction set of the kernels"),
    META(host, TEXT, "", "operating system"),
    META(libraries, TEXT, "", "libraries at run time"),
    META(threads, I32, "", "host threads"),
    META(fingerprint, U64, "", "of the model's weights"),
    META(model, TEXT, "", "path and architecture"),
    META(started, TEXT, "", "start of the first run, ISO 8601 UTC"),
    META(ended, TEXT, "", "end, ISO 8601 UTC; empty while running"),
    META(slice, TEXT, "", "part of the prompts, i/n"),
    META(trace_level, TEXT, "", "steps, nodes or full"),
    {NULL, FIELD_TEXT, 0, NULL, NULL, 0},
};

#define TABLE(name, type, fields, has_text, since, description)                                              \
    {                                                                                                        \
        name, description, sizeof(type), fields, (int)(sizeof(fields) / sizeof(fields)[0]), has_text, since  \
    }
const struct table record_tables[RECORD_TABLES] = {
    [RECORD_ARMS] = TABLE("arms", struct trace_arm, arm_fields, 1, 1, "one row a cell of the sweep"),
    [RECORD_PROMPTS] =
        TABLE("prompts", struct trace_prompt, prompt_fields, 1, 1, "one row a turn of a prompt"),
    [RECORD_REQUESTS] =
        TABLE("requests", struct trace_request, request_fields, 0, 1, "one row a generated answer"),
    [RECORD_PROMPT_TOKENS] = TABLE("prompt_tokens", int32_t, prompt_token_fields, 0, 1,
                                   "token ids of the prompts as the model saw them; ranges in /requests"),
    [RECORD_TOKENS] = TABLE("tokens", struct trace_token, token_fields, 0, 1,
                            "one row an emitted token; ranges in /requests"),
    [RECORD_STEPS] = TABLE("steps", struct trace_step, step_fields, 0, 1,
                           "one row a step of a request; ranges in /requests"),
    [RECORD_NODES] =
        TABLE("nodes", struct trace_node, node_fields, 0, 1, "one row a draft node; ranges in /steps"),
    [RECORD_SCORES] = TABLE("scores", struct trace_score, score_fields, 0, 2,
                            "one row a token of a given answer that the model judged; ranges in /requests"),
    [RECORD_STEP_EXPERTS] = TABLE("step_experts", int32_t, step_expert_fields, 0, 3,
                                  "one row a step and layer of experts; ranges in /steps"),
    [RECORD_NODE_EXPERTS] =
        TABLE("node_experts", int32_t, node_expert_fields, 0, 3,
              "what roots and draft nodes chose in each layer of experts; ranges in /steps"),
};

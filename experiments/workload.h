/* workload: prompts from JSON Lines files as they are published. Four forms, told apart line by line:
 *   {"question_id": 81, "category": "writing", "turns": ["...", "..."]}     Spec-Bench, EAGLE, MT-Bench
 *   {"messages": [{"role": "user", "content": "..."}, ...]}                 OpenAI: user turns are asked one after the other; a leading system
 *                                                                           message is kept, recorded assistant turns are replaced by our own
 *   {"prompt": "..."}                                                       one turn
 *   {"tokens": [1, 2, 3]}                                                   one turn, as the model sees it: no template, no tokenizer
 * Optional in all: "question_id" or "id" (number or string), "category". Blank lines are skipped. */
#ifndef EXPERIMENTS_WORKLOAD_H
#define EXPERIMENTS_WORKLOAD_H
#include "experiments/config.h"

enum { WORKLOAD_MAX_TURNS = 16, WORKLOAD_MAX_REPEATS = 256, WORKLOAD_MAX_PROMPTS = 1 << 20 };

struct prompt {
    char *id, *category, *dataset; /* owned; dataset: the file's name without folder question.jsonl -> its folder */
    char *system;                  /* owned; NULL: the configuration's */
    char **turns;                  /* owned [n_turns] user messages */
    int n_turns;
    int *tokens, n_tokens;         /* owned [n_tokens]; NULL: the turns are text */
    int index;                     /* over all data sets, before limit and slice: identity of the prompt */
};

struct workload {
    struct prompt *prompts; /* owned [n] */
    int n;
};

/* Reads cfg->workload.dataset, applies category and limit (per data set), then the slice (prompt k goes to slice k mod of).
 * ERR_IO; ERR_FORMAT with file:line for invalid UTF-8, invalid JSON, a line of no known form; ERR_CONFIG for zero prompts left. */
int  workload_load(struct workload *w, const struct config *cfg, int slice, int of);
/* One file's bytes, appended to w, for tests and fuzzing. */
int  workload_parse(struct workload *w, const char *bytes, size_t n, const char *what, const char *dataset);
void workload_deinit(struct workload *w); /* a zeroed struct is fine */
/* Identity of an answer for random numbers, references and resuming; the same in every arm. */
static inline uint32_t workload_request_id(int prompt_index, int turn, int repeat)
{
    return ((uint32_t)prompt_index * WORKLOAD_MAX_TURNS + (uint32_t)turn) * WORKLOAD_MAX_REPEATS + (uint32_t)repeat;
}
#endif

/* conversation: the turns of one prompt as the model sees them: each turn's prompt holds the turns before it, with the answers that the
 * model itself gave. */
#ifndef EXPERIMENTS_CONVERSATION_H
#define EXPERIMENTS_CONVERSATION_H
#include "engine/chat.h"
#include "experiments/workload.h"

struct conversation {
    const struct prompt *prompt;      /* borrowed */
    const char *system;               /* borrowed; "": the template's default */
    char *answer[WORKLOAD_MAX_TURNS]; /* owned; NULL: not given yet */
    int *ids;                         /* owned [n_ids]: the prompt that was encoded last */
    int n_ids, cap_ids;
};

/* Forgets an earlier conversation; a zeroed struct is fine. */
void conversation_begin(struct conversation *c, const struct prompt *p, const struct config *cfg);
void conversation_deinit(struct conversation *c);
/* Ids of the prompt of turn [0, n_turns), answers that are missing counted as empty. t NULL: there is no tokenizer. ERR_CONFIG: no tokens, or
 * text without a tokenizer. */
int  conversation_encode(struct conversation *c, const struct chat *chat, const struct tokenizer *t, int turn);
/* The answer of a turn as text: special tokens are left out. Without a tokenizer nothing is kept, as no turn follows. */
int  conversation_answer(struct conversation *c, const struct tokenizer *t, int turn, const int *ids, int n);
/* Tokens that the longest text of this workload needs, prompt and answer, by what is known before there are answers: one whose tokens are
 * no text by themselves takes more in the next turn. Never above `context`. ERR_CONFIG names a prompt that does not fit it. */
int  conversation_cap(const struct workload *w, const struct config *cfg, const struct chat *chat, const struct tokenizer *t,
                      int context, int *cap);
#endif

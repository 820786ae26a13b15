/* stop: when an answer is over: a stop token, a stop string in the decoded text, or the token budget. Decides token by token, so
 * that steps of many tokens end where steps of one would. */
#ifndef SPEC_STOP_H
#define SPEC_STOP_H
#include "engine/tokenizer.h"

enum finish { FINISH_NONE, FINISH_STOP_TOKEN, FINISH_STOP_STRING, FINISH_LENGTH, FINISH_CONTEXT, FINISH_INTERRUPTED };
const char *finish_name(enum finish f); /* "stop", "stop_string", "length", "context", "interrupted" */

struct stop_rules {
    const int *tokens;              /* borrowed [n_tokens]; none with ignore_eos */
    int n_tokens;
    const char *const *strings;     /* borrowed [n_strings], non-empty, UTF-8 */
    int n_strings;
    const struct tokenizer *tokenizer; /* borrowed; needed when n_strings > 0 */
};

struct stop {
    const struct stop_rules *rules;
    struct tokenizer_stream stream;
    char *tail;  /* owned: the last bytes of the text, as many as the longest stop string needs */
    int n_tail, cap_tail, max_string;
};
int  stop_init(struct stop *s, const struct stop_rules *rules); /* allocates; ERR_CONFIG: an empty stop string */
void stop_deinit(struct stop *s);
void stop_begin(struct stop *s);
/* Tell the next emitted token; FINISH_NONE goes on. The token that ends an answer belongs to it. */
enum finish stop_push(struct stop *s, int token);
#endif

/* chat: turns a conversation into token ids. Three templates are built in; the checkpoint's own Jinja text
 * (tokenizer_config.json "chat_template", or chat_template.jinja) says which one it is. Markers become special tokens, what users
 * and models wrote never does. Formats: Llama 4 model card; SmolLM2's and Llama 3's published templates. */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H
#include "engine/tokenizer.h"

enum chat_template { CHAT_RAW, CHAT_CHATML, CHAT_LLAMA3, CHAT_LLAMA4 };

struct chat_message {
    const char *role;    /* "system", "user", "assistant"; borrowed */
    const char *content; /* borrowed, UTF-8 */
};

struct chat {
    enum chat_template kind;
    char *default_system; /* owned; prepended when the first message is not "system"; NULL: none */
    const char *preamble; /* static; goes in front of the first system message's text; NULL: none */
    int *stop;            /* owned [n_stop]: ids that end an answer (generation_config.json, else config.json) */
    int n_stop;
};

/* name: "auto" (recognise the checkpoint's template), "raw", "chatml", "llama3", "llama4".
 * An unknown template in auto is ERR_CONFIG that names `workload.template: raw` as the way out. */
int  chat_open(struct chat *c, const char *dir, const char *name, const struct tokenizer *t);
void chat_close(struct chat *c); /* a zeroed struct is fine */
const char *chat_name(enum chat_template kind);
/* Append the whole conversation and the generation prompt to ids (as tokenizer_encode). raw: the contents one
 * after the other, begin-of-text first if the tokenizer has one. */
int  chat_encode(const struct chat *c, const struct tokenizer *t, const struct chat_message *m, int n,
                 int **ids, int *n_ids, int *cap);
#endif

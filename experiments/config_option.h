/* config_option: the value of one option: from text, to YAML, copied, released. */
#ifndef EXPERIMENTS_CONFIG_OPTION_H
#define EXPERIMENTS_CONFIG_OPTION_H
#include "experiments/config_table.h"

/* Store what the texts [n] say; a former value is released. `where` ("file:line", "--set") opens the message of ERR_CONFIG, which leaves
 * the former value in place. */
int  config_option_set(struct config *c, const struct config_option *o, char *const *text, int n, const char *where);
int  config_option_copy(struct config *to, const struct config *from, const struct config_option *o);
void config_option_free(struct config *c, const struct config_option *o);
/* The value as YAML on one line; text as YAML likewise. */
void config_option_print(const struct config *c, const struct config_option *o, FILE *out);
void config_print_text(const char *text, FILE *out);
void config_print_list(const struct config_list *l, FILE *out);

/* ERR_CONFIG: no such key; `place` says where it is unknown (" in sweep", ""), with the nearest known one. */
int  config_fail_unknown(const char *key, const char *place, const char *where);

/* Lists of owned strings. */
int  config_list_copy(struct config_list *to, char *const *items, int n);
void config_list_free(struct config_list *l);
#endif

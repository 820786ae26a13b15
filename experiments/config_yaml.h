/* config_yaml: an experiment file as a flat list. {draft: {ngram: {min: 1}}} and {draft.ngram.min: 1} are the same to everything
 * that comes after; every entry knows its line. Of YAML only what an experiment needs: mappings, plain and quoted
 * text, lists of text; a list of mappings, {arms: [{a: 1}]}, has entries arms, arms.0, arms.0.a. Anchors, aliases, tags, several documents and nesting beyond CONFIG_YAML_DEPTH are refused. */
#ifndef EXPERIMENTS_CONFIG_YAML_H
#define EXPERIMENTS_CONFIG_YAML_H
#include <stddef.h>

/* Mappings in mappings; entries, and items of a list; bytes of a dotted key. */
enum { CONFIG_YAML_DEPTH = 8, CONFIG_YAML_MAX = 4096, CONFIG_YAML_KEY_MAX = 256 };

enum config_entry_kind {
    CONFIG_ENTRY_TEXT, /* one item; "" for `key:` */
    CONFIG_ENTRY_LIST, /* n items */
    CONFIG_ENTRY_MAP,  /* the mapping itself, no items; its members are entries of their own and follow */
    CONFIG_ENTRY_MAPS  /* a list of mappings, no items: each is an entry of its own, a mapping, and follows */
};
struct config_entry {
    char *key;    /* owned, dotted */
    char **items; /* owned [n], owned strings without embedded zeros, UTF-8 */
    int n, line;
    enum config_entry_kind kind;
};
struct config_entries {
    struct config_entry *at; /* owned [n] */
    int n;
};

/* ERR_CONFIG with what:line. Equal keys are the caller's to find. */
int  config_yaml_read(struct config_entries *out, const char *yaml, size_t n, const char *what);
/* "[a, b]": a single list, as an entry with this key. */
int  config_yaml_list(struct config_entries *out, const char *key, const char *yaml, const char *what);
void config_entries_deinit(struct config_entries *e); /* a zeroed struct is fine */
#endif

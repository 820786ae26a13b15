/* record_fields: what a result file consists of: one table row a field, with unit and description. Everything that writes or
 * reads result files follows these tables, so a new field is one line here and one in trace.h. */
#ifndef EXPERIMENTS_RECORD_FIELDS_H
#define EXPERIMENTS_RECORD_FIELDS_H
#include <stddef.h>

enum field_kind { FIELD_I32, FIELD_U32, FIELD_I64, FIELD_U64, FIELD_F32, FIELD_TEXT };

struct field {
    const char *name; /* of the member and in the file; NULL ends a list */
    enum field_kind kind;
    size_t offset;    /* in the struct of trace.h */
    const char *unit, *description;
    int since;        /* the schema that brought it: in older files its values are 0 */
};

enum record_table {
    RECORD_ARMS,
    RECORD_PROMPTS,
    RECORD_REQUESTS,
    RECORD_PROMPT_TOKENS,
    RECORD_TOKENS,
    RECORD_STEPS,
    RECORD_NODES,
    RECORD_SCORES,
    RECORD_STEP_EXPERTS,
    RECORD_NODE_EXPERTS,
    RECORD_TABLES
};

struct table {
    const char *name, *description;
    size_t row_bytes;           /* of the struct in memory */
    const struct field *fields; /* one field without a name: the data set holds plain numbers */
    int n_fields, has_text;
    int since;                  /* the schema that brought it: older files have no rows of it */
};

extern const struct table record_tables[RECORD_TABLES]; /* by enum record_table */
extern const struct field record_meta_fields[];         /* root attributes, members of struct trace_meta */
#endif

/* display: text on a terminal, measured in columns, not bytes. Labels and names come from foreign files in any script: bytes that are not
 * UTF-8 and control characters show as "?", so that no file can steer a terminal. */
#ifndef EXPERIMENTS_DISPLAY_H
#define EXPERIMENTS_DISPLAY_H
#include <stdio.h>

enum { DISPLAY_WIDTH = 110 }; /* columns that everything printed keeps to */

int  display_width(const char *text);
/* At most `width` columns, with an ellipsis for what is cut; returns the columns written. */
int  display_put(const char *text, int width, FILE *out);
/* A paragraph, broken at spaces; lines after the first are indented. */
void display_paragraph(const char *text, int indent, int width, FILE *out);
#endif

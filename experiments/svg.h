/* svg: plots for a page: axes with round numbers, lines, points with intervals, bars, and a legend below where nothing overlaps. Colours are
 * classes c0..c7 of the page's style, text has the page's colour, so one plot does for light, dark and paper. */
#ifndef EXPERIMENTS_SVG_H
#define EXPERIMENTS_SVG_H
#include <stdio.h>

enum { SVG_COLOURS = 8, SVG_WIDTH = 480, SVG_HEIGHT = 300 };

struct svg {
    FILE *out;
    double x0, x1, y0, y1; /* the data's range */
    int left, right, top, bottom; /* of the plotting area, in pixels */
};

/* Text of any bytes as HTML: escaped, what is not UTF-8 replaced, control characters left out. */
void svg_escape(FILE *out, const char *text);

/* A figure with axes. x_ticks 0: the caller labels x itself (svg_x_label). Ranges are widened to round numbers where they are empty. */
void svg_begin(struct svg *s, FILE *out, const char *title, const char *x_name, const char *y_name, int x_ticks);
void svg_x_label(const struct svg *s, double x, const char *text);
void svg_line(const struct svg *s, const double *x, const double *y, int n, int colour);
void svg_dashed(const struct svg *s, double x0, double y0, double x1, double y1);
void svg_point(const struct svg *s, double x, double y, int colour, const char *title);
void svg_interval_y(const struct svg *s, double x, double lo, double hi, int colour); /* NaN: none */
void svg_interval_x(const struct svg *s, double y, double lo, double hi, int colour);
void svg_box(const struct svg *s, double x0, double y0, double x1, double y1, int colour, const char *title);
/* Names by colour, and a sentence that says what is seen. */
void svg_end(const struct svg *s, const char *const *names, int n, const char *caption);
#endif

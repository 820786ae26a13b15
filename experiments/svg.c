/* Pixels of a fixed view box, which the page scales. */
#include "experiments/svg.h"
#include "engine/utf8.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { LEFT = 58, RIGHT = 14, TOP = 14, BOTTOM = 44, TICKS = 5 };

void svg_escape(FILE *out, const char *text)
{
    size_t n;
    char *clean = utf8_clean(text, strlen(text), &n);
    for (size_t i = 0; clean && i < n; i++) {
        unsigned char c = (unsigned char)clean[i];
        if (c == '<')
            fputs("&lt;", out);
        else if (c == '>')
            fputs("&gt;", out);
        else if (c == '&')
            fputs("&amp;", out);
        else if (c == '"')
            fputs("&quot;", out);
        else if (c >= 32 || c == '\n' || c == '\t')
            fputc(c, out);
    }
    free(clean);
}

/* The distance of round numbers: 1, 2 or 5 times a power of ten. */
static double round_step(double range)
{
    double raw = range / TICKS, power = pow(10, floor(log10(raw))), m = raw / power;
    return power * (m <= 1 ? 1 : m <= 2 ? 2 : m <= 5 ? 5 : 10);
}

static double px(const struct svg *s, double x)
{
    return s->left + (x - s->x0) / (s->x1 - s->x0) * (s->right - s->left);
}

static double py(const struct svg *s, double y)
{
    return s->bottom - (y - s->y0) / (s->y1 - s->y0) * (s->bottom - s->top);
}

static void make_range(double *lo, double *hi)
{
    if (!isfinite(*lo) || !isfinite(*hi)) {
        *lo = 0;
        *hi = 1;
    }
    if (!(*hi > *lo))
        *hi = *lo + (*lo != 0 ? fabs(*lo) : 1);
    double step = round_step(*hi - *lo);
    *lo = floor(*lo / step + 1e-9) * step;
    *hi = ceil(*hi / step - 1e-9) * step;
}

static void ticks(const struct svg *s, int x_ticks)
{
    double step = round_step(s->y1 - s->y0);
    for (double v = s->y0; v <= s->y1 + step / 2; v += step) {
        double y = py(s, v);
        fprintf(s->out, "<line class=\"grid\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", s->left,
                s->right, y, y);
        fprintf(s->out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", s->left - 6, y + 4,
                fabs(v) < step / 1e6 ? 0 : v);
    }
    step = round_step(s->x1 - s->x0);
    for (double v = s->x0; x_ticks && v <= s->x1 + step / 2; v += step)
        fprintf(s->out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n", px(s, v),
                s->bottom + 17, fabs(v) < step / 1e6 ? 0 : v);
}

void svg_begin(struct svg *s, FILE *out, const char *title, const char *x_name, const char *y_name,
               int x_ticks)
{
    s->out = out;
    s->left = LEFT;
    s->right = SVG_WIDTH - RIGHT;
    s->top = TOP;
    s->bottom = SVG_HEIGHT - BOTTOM;
    if (x_ticks)
        make_range(&s->x0, &s->x1);
    make_range(&s->y0, &s->y1);
    fputs("<figure><h3>", out);
    svg_escape(out, title);
    fprintf(out, "</h3><svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", SVG_WIDTH, SVG_HEIGHT);
    svg_escape(out, title);
    fputs("\">\n", out);
    ticks(s, x_ticks);
    fprintf(out, "<line class=\"axis\" x1=\"%d\" x2=\"%d\" y1=\"%d\" y2=\"%d\"/>", s->left, s->right,
            s->bottom, s->bottom);
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">", (s->left + s->right) / 2, SVG_HEIGHT - 6);
    svg_escape(out, x_name);
    fprintf(out, "</text><text transform=\"translate(13 %d) rotate(-90)\" text-anchor=\"middle\">",
            (s->top + s->bottom) / 2);
    svg_escape(out, y_name);
    fputs("</text>\n", out);
}

void svg_x_label(const struct svg *s, double x, const char *text)
{
    fprintf(s->out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">", px(s, x), s->bottom + 17);
    svg_escape(s->out, text);
    fputs("</text>\n", s->out);
}

void svg_line(const struct svg *s, const double *x, const double *y, int n, int colour)
{
    fprintf(s->out, "<polyline class=\"line c%d\" points=\"", colour % SVG_COLOURS);
    for (int i = 0; i < n; i++)
        if (isfinite(x[i]) && isfinite(y[i]))
            fprintf(s->out, "%.1f,%.1f ", px(s, x[i]), py(s, y[i]));
    fputs("\"/>\n", s->out);
}

void svg_dashed(const struct svg *s, double x0, double y0, double x1, double y1)
{
    fprintf(s->out, "<line class=\"dashed\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/>\n", px(s, x0),
            py(s, y0), px(s, x1), py(s, y1));
}

void svg_point(const struct svg *s, double x, double y, int colour, const char *title)
{
    if (!isfinite(x) || !isfinite(y))
        return;
    fprintf(s->out, "<circle class=\"fill c%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"4\"><title>",
            colour % SVG_COLOURS, px(s, x), py(s, y));
    svg_escape(s->out, title);
    fputs("</title></circle>\n", s->out);
}

void svg_interval_y(const struct svg *s, double x, double lo, double hi, int colour)
{
    if (isfinite(lo) && isfinite(hi))
        fprintf(s->out, "<line class=\"line c%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                colour % SVG_COLOURS, px(s, x), px(s, x), py(s, fmax(lo, s->y0)), py(s, fmin(hi, s->y1)));
}

void svg_interval_x(const struct svg *s, double y, double lo, double hi, int colour)
{
    if (isfinite(lo) && isfinite(hi))
        fprintf(s->out, "<line class=\"line c%d\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                colour % SVG_COLOURS, px(s, fmax(lo, s->x0)), px(s, fmin(hi, s->x1)), py(s, y), py(s, y));
}

void svg_box(const struct svg *s, double x0, double y0, double x1, double y1, int colour, const char *title)
{
    double x = px(s, x0), y = py(s, fmin(y1, s->y1)), w = px(s, x1) - x, h = py(s, y0) - y;
    if (!(w > 0 && h >= 0))
        return;
    fprintf(s->out, "<rect class=\"fill c%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>",
            colour % SVG_COLOURS, x, y, w, h);
    svg_escape(s->out, title);
    fputs("</title></rect>\n", s->out);
}

void svg_end(const struct svg *s, const char *const *names, int n, const char *caption)
{
    fputs("</svg>", s->out);
    if (n > 0)
        fputs("<p class=\"legend\">", s->out);
    for (int i = 0; i < n; i++) {
        fprintf(s->out, "<span><i class=\"swatch c%d\"></i>", i % SVG_COLOURS);
        svg_escape(s->out, names[i]);
        fputs("</span> ", s->out);
    }
    fputs(n > 0 ? "</p><figcaption>" : "<figcaption>", s->out);
    svg_escape(s->out, caption);
    fputs("</figcaption></figure>\n", s->out);
}

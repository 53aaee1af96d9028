/* The inner loops of fusion: text to columns, stamps to one axis, readings to pairs, pairs to text.
 *
 * plain/ does the same in numpy, to the last byte; what each function means is written in __init__.py.
 * Nothing here allocates, reads a clock or does I/O; every buffer is the caller's, with its length. Plain C99
 * without a header of Python's, so that one build serves every interpreter. Floating point is IEEE double with
 * each operation rounded by itself (-ffp-contract=off), in the order that numpy and Python use too.
 */

#define _POSIX_C_SOURCE 200809L /* newlocale */

#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined _WIN32
#define EXPORT __declspec(dllexport)
typedef void *locale_t;
#define LC_NUMERIC_MASK 0
#define newlocale(mask, name, base) ((locale_t)0)
#define uselocale(wanted) ((locale_t)0)
#else
#if defined __APPLE__
#include <xlocale.h>
#endif
#define EXPORT __attribute__((visibility("default")))
#endif

typedef int64_t i64;
typedef uint64_t u64;
typedef uint8_t u8;

#define NS 1000000000LL
#define DAY_S 86400LL

/* ---- instants ---------------------------------------------------------------------------------------------- */

static i64 floor_div(i64 a, i64 b) { return a / b - (a % b < 0); }

/* Days since 1970-01-01 of a civil date, and back: Howard Hinnant, chrono-Compatible Low-Level Date Algorithms. */
static i64 days_of(i64 year, i64 month, i64 day)
{
    year -= month <= 2;
    i64 era = floor_div(year, 400), of_era = year - era * 400;
    i64 of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static void date_of(i64 days, i64 *year, i64 *month, i64 *day)
{
    days += 719468;
    i64 era = floor_div(days, 146097), of_era = days - era * 146097;
    i64 years = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    i64 of_year = of_era - (365 * years + years / 4 - years / 100), m = (5 * of_year + 2) / 153;
    *day = of_year - (153 * m + 2) / 5 + 1;
    *month = m + (m < 10 ? 3 : -9);
    *year = years + era * 400 + (*month <= 2);
}

static int is_digit(u8 c) { return (u8)(c - '0') < 10; }

/* The number that two digits make, 100 where one is none. */
static int two(const u8 *p) { return is_digit(p[0]) && is_digit(p[1]) ? (p[0] - '0') * 10 + p[1] - '0' : 100; }

/* ---- text to columns --------------------------------------------------------------------------------------- */

#define STAMP_HEAD 17 /* YYYY-MM-DDTHH:MM: */

typedef struct {
    u8 head[STAMP_HEAD]; /* of the last stamp, for the next one is of the same minute */
    i64 minute_s;
    const u8 *names; /* ",sensor_id,mode," of the last row, for the next one has the same */
    i64 names_size;
} memory;

static int minute_of(const u8 *p, i64 *minute_s)
{
    static const u8 lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int century = two(p), year = two(p + 2), month = two(p + 5), day = two(p + 8), hour = two(p + 11);
    int minute = two(p + 14);
    if (p[4] != '-' || p[7] != '-' || p[10] != 'T' || p[13] != ':' || p[16] != ':') return 0;
    if (century > 20 || century < 19 || year > 99 || month < 1 || month > 12 || hour > 23 || minute > 59) return 0;
    year += 100 * century;
    int leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    if (year < 1970 || day < 1 || day > lengths[month - 1] + (leap && month == 2)) return 0;
    *minute_s = days_of(year, month, day) * DAY_S + hour * 3600 + minute * 60;
    return 1;
}

/* Length of the canonical stamp at p, 0 if there is none: 3 or 6 decimals, then Z or +00:00. */
static int stamp_at(const u8 *p, const u8 *end, memory *last, i64 *utc_ns)
{
    if (end - p < 25) return 0;
    if (memcmp(p, last->head, STAMP_HEAD) != 0) {
        if (!minute_of(p, &last->minute_s)) return 0;
        memcpy(last->head, p, STAMP_HEAD);
    }
    int second = two(p + 17), micros;
    if (second > 59 || p[19] != '.') return 0;
    const u8 *q = p + 20;
    if (end - q >= 7 && is_digit(q[3])) {
        int high = two(q), middle = two(q + 2), low = two(q + 4);
        if (high > 99 || middle > 99 || low > 99) return 0;
        micros = high * 10000 + middle * 100 + low;
        q += 6;
    } else {
        int high = two(q);
        if (high > 99 || !is_digit(q[2])) return 0;
        micros = (high * 10 + q[2] - '0') * 1000;
        q += 3;
    }
    if (q < end && *q == 'Z')
        q++;
    else if (end - q >= 6 && memcmp(q, "+00:00", 6) == 0)
        q += 6;
    else
        return 0;
    *utc_ns = (last->minute_s + second) * NS + micros * 1000LL;
    return (int)(q - p);
}

/* End of the text field at p: printable ASCII but quotes, up to a comma; NULL if it is none. */
static const u8 *text_field(const u8 *p, const u8 *end)
{
    while (p < end && *p >= ' ' && *p <= '~' && *p != ',' && *p != '"') p++;
    return p < end && *p == ',' ? p : 0;
}

/* End of the decimal number at p, its own start if there is none. whole: it may be one without a fraction. */
static const u8 *number_field(const u8 *p, const u8 *end, int *whole)
{
    const u8 *q = p + (p < end && *p == '-'), *digits = q;
    *whole = 1;
    while (q < end && is_digit(*q)) q++;
    if (q == digits) return p;
    if (q < end && *q == '.') {
        digits = ++q;
        for (; q < end && is_digit(*q); q++) *whole &= *q == '0';
        if (q == digits) return p;
    }
    if (q < end && (*q == 'e' || *q == 'E')) {
        q++;
        if (q < end && (*q == '+' || *q == '-')) q++;
        digits = q;
        while (q < end && is_digit(*q)) q++;
        if (q == digits) return p;
        *whole = 1;
    }
    return q;
}

/* End of the whole number at p that lies below 2^63, its own start if there is none. */
static const u8 *count_field(const u8 *p, const u8 *end, i64 *value)
{
    const u8 *q = p;
    *value = 0;
    for (; q < end && is_digit(*q) && q - p < 18; q++) *value = *value * 10 + (*q - '0');
    return q < end && is_digit(*q) ? p : q;
}

static uint32_t crc_table[8 * 256];
static locale_t plain_numbers; /* of the host program others may have chosen another decimal point */

/* To be called once, before any scan. */
EXPORT void qs_begin(void)
{
    plain_numbers = newlocale(LC_NUMERIC_MASK, "C", (locale_t)0);
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t c = n;
        for (int bit = 0; bit < 8; bit++) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
        crc_table[n] = c;
    }
    for (int n = 256; n < 8 * 256; n++) crc_table[n] = crc_table[crc_table[n - 256] & 255] ^ crc_table[n - 256] >> 8;
}

static uint32_t crc32_of(const u8 *p, i64 size)
{
    const uint32_t *t = crc_table;
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; p += 8, size -= 8) {
        uint32_t a = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = t[0x700 + (a & 255)] ^ t[0x600 + (a >> 8 & 255)] ^ t[0x500 + (a >> 16 & 255)] ^ t[0x400 + (a >> 24)]
            ^ t[0x300 + p[4]] ^ t[0x200 + p[5]] ^ t[0x100 + p[6]] ^ t[p[7]];
    }
    while (size-- > 0) crc = crc >> 8 ^ t[(crc ^ *p++) & 255];
    return ~crc;
}

static int checksum_holds(const u8 *p, const u8 *comma, const u8 *end)
{
    static const char hex[] = "0123456789abcdef";
    if (end - comma != 9) return 0;
    uint32_t crc = crc32_of(p, comma - p);
    for (int i = 8; i > 0; i--, crc >>= 4)
        if (comma[i] != (u8)hex[crc & 15]) return 0;
    return 1;
}

typedef struct {
    i64 utc, seq, epoch, mono;
    int length, flags; /* of the old six columns; see SPAN in __init__.py */
} row;

#define WHOLE 4

/* Where the value begins behind ",sensor_id,mode,", NULL if that is not what is there, or a marker. */
static const u8 *names_end(const u8 *p, const u8 *end, memory *last)
{
    if (last->names_size && end - p > last->names_size && !memcmp(p, last->names, (size_t)last->names_size))
        return p + last->names_size;
    const u8 *comma = p < end && *p == ',' ? text_field(p + 1, end) : 0;
    const u8 *stop = comma ? text_field(comma + 1, end) : 0;
    if (!stop || (stop - comma > 5 && !memcmp(comma + 1, "SYNC_", 5))) return 0;
    last->names = p;
    last->names_size = stop + 1 - p;
    return stop + 1;
}

/* The old six columns. Returns where they end, NULL if the line needs the slow way. */
static const u8 *old_columns(const u8 *p, const u8 *end, memory *last, row *r)
{
    int length = stamp_at(p, end, last, &r->utc), whole, ignored;
    const u8 *value = length ? names_end(p + length, end, last) : 0, *q;
    if (!value) return 0;
    q = number_field(value, end, &whole);
    if (q == value || q >= end || *q != ',') return 0;
    const u8 *temp = q + 1;
    q = number_field(temp, end, &ignored);
    r->flags = (q > temp) | (whole ? WHOLE : 0);
    if (q >= end || *q != ',') return 0;
    const u8 *vin = q + 1;
    q = number_field(vin, end, &ignored);
    r->flags += q > vin;
    return q;
}

static int our_columns(const u8 *p, const u8 *end, int check, memory *last, row *r)
{
    const u8 *q = old_columns(p, end, last, r);
    if (!q) return 0;
    r->length = (int)(q - p);
    i64 *values[] = {&r->seq, &r->epoch, &r->mono};
    for (int i = 0; i < 3; i++) {
        if (q >= end || *q != ',') return 0;
        const u8 *start = q + 1;
        q = count_field(start, end, values[i]);
        if (q == start) return 0;
    }
    if (q >= end || *q != ',' || end - q != 9 || r->epoch > INT32_MAX) return 0;
    return !check || checksum_holds(p, q, end);
}

static int is_blank(const u8 *p, const u8 *end)
{
    while (p < end && (*p == ' ' || (*p >= '\t' && *p <= '\r'))) p++;
    return p == end;
}

#define ORDERED 1
#define RISING 2
#define ONE_EPOCH 4

/* What holds of two rows in a row. */
static i64 order_of(i64 at, i64 next_at, i64 seq, i64 next_seq, i64 epoch, i64 next_epoch)
{
    int later = epoch == next_epoch ? at <= next_at : epoch < next_epoch;
    return (seq < next_seq && later ? ORDERED : 0) | (at < next_at ? RISING : 0) | (epoch == next_epoch ? ONE_EPOCH : 0);
}

/* See scan in __init__.py. found: rows, odd lines, where it stopped, the order that the rows are in,
 * lines. */
EXPORT void qs_scan(const u8 *text, i64 start, i64 stop, i64 base, i64 ours, i64 check, i64 capacity, i64 *at, i64 *utc,
             i64 *seq, i64 *epoch, u64 *span, i64 odd_capacity, i64 *odd, i64 *found)
{
    memory last = {{0xFF}, 0, 0, 0}; /* no stamp begins so */
    const u8 *p = text + start, *all = text + stop;
    i64 rows = 0, odds = 0, lines = 0, order = ORDERED | RISING | ONE_EPOCH;
    while (p < all && rows < capacity && odds < odd_capacity) {
        const u8 *newline = memchr(p, '\n', (size_t)(all - p)), *next = newline ? newline + 1 : all;
        const u8 *end = newline ? newline : all;
        if (end > p && end[-1] == '\r') end--;
        row r = {0, -1, -1, 0, 0, 0};
        int good;
        if (ours) {
            good = our_columns(p, end, (int)check, &last, &r);
        } else {
            const u8 *q = old_columns(p, end, &last, &r);
            good = q == end;
            r.length = (int)(end - p);
            r.mono = r.utc;
        }
        if (good && end - p <= 0xFFFF) {
            at[rows] = r.mono;
            utc[rows] = r.utc;
            seq[rows] = r.seq;
            epoch[rows] = r.epoch;
            span[rows] = (u64)(base + (p - text)) << 20 | (u64)r.flags << 16 | (u64)r.length;
            if (rows) order &= order_of(at[rows - 1], r.mono, seq[rows - 1], r.seq, epoch[rows - 1], r.epoch);
            rows++;
        } else if (!is_blank(p, end)) {
            odd[4 * odds] = rows;
            odd[4 * odds + 1] = lines;
            odd[4 * odds + 2] = p - text;
            odd[4 * odds++ + 3] = next - text;
        }
        p = next;
        lines++;
    }
    found[0] = rows;
    found[1] = odds;
    found[2] = p - text;
    found[3] = order;
    found[4] = lines;
}

/* ---- stamps to one axis ------------------------------------------------------------------------------------ */

/* One course of an offset; fields as in COURSE of __init__.py. */
#define MISSING INT64_MIN

typedef struct {
    i64 from, to, zero, origin, shift, status; /* origin MISSING: no offset is known */
    double rate, offset[4], variance[7], low[4], high[4];
} course;

static double horner(const double *c, int n, double s)
{
    double sum = c[n - 1];
    for (int i = n - 2; i >= 0; i--) sum = sum * s + c[i];
    return sum;
}

static i64 whole_below(double x) { return (i64)x - ((double)(i64)x > x); }
static i64 whole_above(double x) { return (i64)x + ((double)(i64)x < x); }
static i64 nearest(double x) { return whole_below(x + 0.5); }
static double least(double a, double b) { return a < b ? a : b; }
static double most(double a, double b) { return a > b ? a : b; }

#define NORMAL_95 1.96

static i64 time_on(const course *c, i64 at, i64 label, double *s, double *middle, double *below, double *above)
{
    if (c->origin == MISSING) return label + c->shift;
    *s = (double)(at - c->zero) * c->rate;
    *middle = horner(c->offset, 4, *s);
    *below = most(c->low[0] + c->low[1] * *s, c->low[2] + c->low[3] * *s);
    *above = least(c->high[0] + c->high[1] * *s, c->high[2] + c->high[3] * *s);
    if (*below > *above) { /* evidence that contradicts itself: the truth may be on either side */
        double lower = least(*above, *middle);
        *above = most(*below, *middle);
        *below = lower;
    }
    *middle = least(most(*middle, *below), *above);
    return at - (c->origin + nearest(*middle)) + c->shift;
}

/* See place in __init__.py. Returns how many rows lay on a course before the first that does not. */
EXPORT i64 qs_place(i64 n, const i64 *at, const i64 *utc, const i64 *moved, i64 courses, const course *list, i64 *time, i64 *offset, i64 *sd, i64 *low,
             i64 *high, u8 *status)
{
    const course *c = list, *last = list + courses;
    double s = 0, middle = 0, below = 0, above = 0;
    for (i64 i = 0; i < n; i++) {
        while (c > list && at[i] < c->from) c--;
        while (c + 1 < last && at[i] >= c->to) c++;
        if (c >= last || at[i] < c->from || at[i] >= c->to) return i;
        time[i] = time_on(c, at[i], utc[i], &s, &middle, &below, &above) + (moved ? moved[i] : 0);
        if (!offset) continue;
        status[i] = (u8)c->status;
        offset[i] = sd[i] = low[i] = high[i] = MISSING;
        if (c->origin == MISSING) continue;
        double spread = sqrt(most(0.0, horner(c->variance, 7, s)));
        offset[i] = c->origin + nearest(middle);
        sd[i] = nearest(least(spread, most(middle - below, above - middle) / NORMAL_95));
        if (!isinf(below)) low[i] = c->origin + whole_below(below);
        if (!isinf(above)) high[i] = c->origin + whole_above(above);
    }
    return n;
}

/* ---- statistics -------------------------------------------------------------------------------------------- */

#define EXACT 11 /* leading bits of a value that its bucket keeps */

static i64 bucket_of(u64 value)
{
    int above = 0;
#ifdef __GNUC__
    if (value >> EXACT) above = 64 - EXACT - __builtin_clzll(value);
#else
    while (value >> above >> EXACT) above++;
#endif
    return ((i64)above << (EXACT - 1)) + (i64)(value >> above);
}

static void count_in(i64 *tally, u64 value)
{
    i64 *bucket = tally + 2 * bucket_of(value);
    bucket[0]++;
    bucket[1] += (i64)value;
}

/* See tally and tally_intervals in __init__.py. Returns how many intervals run backwards; they are not counted. */
EXPORT i64 qs_tally(i64 n, const i64 *values, i64 intervals, i64 before, i64 *tally)
{
    i64 backwards = 0;
    for (i64 i = 0; i < n; i++) {
        i64 value = values[i];
        if (!intervals) {
            if (value != MISSING) count_in(tally, (u64)value);
        } else if (before != MISSING) {
            if (value < before)
                backwards++;
            else
                count_in(tally, (u64)(value - before));
        }
        before = value;
    }
    return backwards;
}

/* See ends in __init__.py. */
EXPORT void qs_ends(i64 n, const i64 *values, i64 *found)
{
    found[0] = found[1] = values[0];
    for (i64 i = 1; i < n; i++) {
        if (values[i] < found[0]) found[0] = values[i];
        if (values[i] > found[1]) found[1] = values[i];
    }
}

/* See flags in __init__.py. */
EXPORT void qs_flags(i64 n, const u64 *span, i64 *counts)
{
    for (i64 i = 0; i < n; i++) counts[span[i] >> 16 & 7]++;
}

/* See shifted in __init__.py. */
EXPORT void qs_shift(i64 n, const i64 *values, i64 by, i64 *out)
{
    for (i64 i = 0; i < n; i++) out[i] = values[i] + by;
}

/* See outliers in __init__.py. Returns how many it found. */
EXPORT i64 qs_outliers(i64 n, const i64 *values, i64 before, i64 least, i64 most_, i64 room, i64 *found)
{
    i64 count = 0;
    for (i64 i = 0; i < n && count < room; i++) {
        if (before != MISSING && (values[i] - before < least || values[i] - before > most_)) found[count++] = i;
        before = values[i];
    }
    return count;
}

/* ---- readings to pairs ------------------------------------------------------------------------------------- */

typedef struct {
    i64 pairs; /* -1: no such history */
    i64 apart; /* total distance, ns */
} score;

static int beats(score one, score other)
{
    return one.pairs > other.pairs || (one.pairs == other.pairs && one.apart < other.apart);
}

static i64 distance(i64 a, i64 b) { return a < b ? b - a : a - b; }

/* Move the slots to the window of the next row, which begins `by` readings later. Returns the old slot that is
 * slot 0 now: of the histories that the next row cannot tell apart the best, which is the last. */
static i64 slide(score *slots, i64 count, i64 by, i64 wanted)
{
    i64 merged = by < count - 1 ? by : count - 1;
    while (slots[merged].pairs < 0) merged--;
    slots[0] = slots[merged];
    for (i64 j = 1; j < wanted; j++) {
        if (j + by < count)
            slots[j] = slots[j + by];
        else
            slots[j].pairs = -1;
    }
    return merged;
}

/* Every way on for one row, from its slots to those behind it. A history that scores no more than one that has
 * used less is dropped. */
static void step(i64 time, const i64 *surface, i64 width, const score *slots, score *next, uint32_t *trail)
{
    i64 best = 0, top = 0;
    next[0] = slots[0];
    trail[0] = 0;
    for (i64 j = 1; j <= width; j++) {
        score taken = {slots[best].pairs + 1, slots[best].apart + distance(time, surface[j - 1])};
        int stays = slots[j].pairs >= 0 && !beats(taken, slots[j]);
        next[j] = stays ? slots[j] : taken;
        trail[j] = stays ? (uint32_t)j << 1 : (uint32_t)best << 1 | 1;
        if (beats(next[j], next[top]))
            top = j;
        else
            next[j].pairs = -1;
        if (slots[j].pairs >= 0) best = j;
    }
}

static int is_single(const score *slots, i64 count)
{
    while (--count > 0)
        if (slots[count].pairs >= 0) return 0;
    return 1;
}

/* See Matcher in __init__.py. state: where the window begins, number of slots. found: rows taken, words of trail
 * written; words and rows (-1: none) of these that are decided, all before them too, and the slot and the window
 * that they are decided from. Returns 0, or how many slots it needs. */
EXPORT i64 qs_match(i64 n, const i64 *times, i64 m, const i64 *surface, i64 first, i64 tolerance, i64 room, score *slots,
             score *spare, i64 *state, i64 trail_room, uint32_t *trail, i64 *found)
{
    i64 low = state[0] - first, count = state[1], end = low, written = 0;
    score *given = slots;
    memset(found, 0, 6 * sizeof *found);
    found[3] = -1;
    for (i64 i = 0; i < n; i++) {
        i64 start = low;
        while (start < m && surface[start] < times[i] - tolerance) start++;
        if (end < start) end = start;
        while (end < m && surface[end] <= times[i] + tolerance) end++;
        i64 width = end - start, wanted = width + 1;
        if (wanted > room) {
            if (slots != given) memcpy(given, slots, (size_t)count * sizeof *slots);
            return wanted;
        }
        if (written + wanted + 3 > trail_room) break;
        i64 merged = slide(slots, count, start - low, wanted);
        if (is_single(slots, wanted)) {
            slots[0].pairs = slots[0].apart = 0;
            found[2] = written;
            found[3] = i;
            found[4] = merged;
            found[5] = first + low;
        }
        step(times[i], surface + start, width, slots, spare, trail + written);
        score *swap = slots;
        slots = spare;
        spare = swap;
        written += wanted;
        trail[written++] = (uint32_t)merged;
        trail[written++] = (uint32_t)(start - low);
        trail[written++] = (uint32_t)width;
        low = start;
        count = wanted;
        state[0] = first + low;
        state[1] = count;
        found[0] = i + 1;
        found[1] = written;
    }
    if (slots != given) memcpy(given, slots, (size_t)count * sizeof *slots);
    return 0;
}

static void mark(u8 *bits, i64 number) { bits[number >> 3] |= (u8)(1 << (number & 7)); }

/* See Matcher in __init__.py: back along a trail, from a slot of its last row. state: slot, start of the window,
 * number of the row behind the last. Marks who has a partner on either side. */
EXPORT void qs_trace(i64 words, const uint32_t *trail, i64 *state, u8 *inwater, u8 *surface)
{
    while (words > 0) {
        i64 width = trail[words - 1], by = trail[words - 2], merged = trail[words - 3];
        words -= width + 4;
        uint32_t from = trail[words + state[0]];
        state[2]--;
        if (from & 1) {
            mark(inwater, state[2]);
            mark(surface, state[1] + state[0] - 1);
        }
        state[0] = from >> 1 ? (from >> 1) + by : merged;
        state[1] -= by;
    }
}

/* ---- pairs to text ----------------------------------------------------------------------------------------- */

#define SLACK 16

typedef struct {
    u8 *p;
    i64 day_s; /* of the date that is written in head */
    u8 head[11];
} writer;

static const char pairs_of_digits[] = "0001020304050607080910111213141516171819202122232425262728293031323334353637383940"
                                      "4142434445464748495051525354555657585960616263646566676869707172737475767778798081"
                                      "828384858687888990919293949596979899";

static u8 *put_two(u8 *p, i64 value)
{
    memcpy(p, pairs_of_digits + 2 * value, 2);
    return p + 2;
}

static u8 *put_count(u8 *p, u64 value)
{
    u8 digits[20], *q = digits + sizeof digits;
    for (; value >= 100; value /= 100) q -= 2, memcpy(q, pairs_of_digits + 2 * (value % 100), 2);
    if (value >= 10)
        q -= 2, memcpy(q, pairs_of_digits + 2 * value, 2);
    else
        *--q = (u8)('0' + value);
    i64 size = digits + sizeof digits - q;
    memcpy(p, q, (size_t)size);
    return p + size;
}

static void put_text(writer *w, const void *text, i64 size)
{
    memcpy(w->p, text, (size_t)size);
    w->p += size;
}

/* The same for a text with SLACK bytes behind it. */
static void put_slack(writer *w, const u8 *text, i64 size)
{
    for (i64 done = 0; done < size; done += SLACK) memcpy(w->p + done, text + done, SLACK);
    w->p += size;
}

static void put_byte(writer *w, u8 byte) { *w->p++ = byte; }

/* As format_utc of common/rows.py does. */
static void put_utc(writer *w, i64 ns)
{
    i64 second = floor_div(ns, NS), us = (ns - second * NS) / 1000, of_day = second - w->day_s;
    if (of_day < 0 || of_day >= DAY_S) {
        i64 day = floor_div(second, DAY_S), year, month, date;
        date_of(day, &year, &month, &date);
        u8 *h = put_two(put_two(w->head, year / 100), year % 100);
        *h++ = '-';
        h = put_two(h, month);
        *h++ = '-';
        *put_two(h, date) = 'T';
        w->day_s = day * DAY_S;
        of_day = second - w->day_s;
    }
    put_text(w, w->head, 11);
    u8 *p = put_two(w->p, of_day / 3600);
    *p++ = ':';
    p = put_two(p, of_day / 60 % 60);
    *p++ = ':';
    p = put_two(p, of_day % 60);
    *p++ = '.';
    p = put_two(put_two(put_two(p, us / 10000), us / 100 % 100), us % 100);
    memcpy(p, "+00:00", 6);
    w->p = p + 6;
}

/* Milliseconds with three decimals, rounded half up; nothing where it is missing. */
static void put_ms(writer *w, i64 ns)
{
    if (ns == MISSING) return;
    i64 us = floor_div(ns + 500, 1000);
    if (us < 0) put_byte(w, '-'), us = -us;
    w->p = put_count(w->p, (u64)(us / 1000));
    put_byte(w, '.');
    put_byte(w, (u8)('0' + us / 100 % 10));
    w->p = put_two(w->p, us % 100);
}

static void put_seq(writer *w, i64 seq)
{
    if (seq >= 0) w->p = put_count(w->p, (u64)seq);
}

/* One sensor's block of rows; fields as in SIDE of __init__.py. */
typedef struct {
    i64 n, first;
    const i64 *time, *seq;
    const u64 *span;
    const u8 *text, *taken;
    i64 text_from;
} side;

static const u8 *text_of(const side *s, i64 i, i64 *size)
{
    *size = (i64)(s->span[i] & 0xFFFF);
    return s->text + ((i64)(s->span[i] >> 20) - s->text_from);
}

static int is_taken(const side *s, i64 i)
{
    i64 number = s->first + i;
    return s->taken[number >> 3] >> (number & 7) & 1;
}

static i64 stamp_size(const u8 *text)
{
    i64 size = text[23] == 'Z' || text[23] == '+' ? 24 : 27; /* 3 or 6 decimals */
    return text[size - 1] == 'Z' ? size : size + 5;
}

/* ",sensor_id,mode,value,TempC,Vin" of a row; where it is missing, five empty columns. */
static void put_columns(writer *w, const side *s, i64 i)
{
    if (i < 0) {
        put_text(w, ",,,,,", 5);
        return;
    }
    i64 size, stamp;
    const u8 *text = text_of(s, i, &size);
    stamp = stamp_size(text);
    put_slack(w, text + stamp, size - stamp);
}

/* The row's own label with microseconds and +00:00, digit by digit as it was recorded. */
static void put_label(writer *w, const side *s, i64 i)
{
    i64 size;
    const u8 *text = text_of(s, i, &size);
    int milliseconds = text[23] == 'Z' || text[23] == '+';
    put_text(w, text, milliseconds ? 23 : 26);
    put_text(w, "000+00:00" + (milliseconds ? 0 : 3), milliseconds ? 9 : 6);
}

/* The value in a row's text; 0 if it is none. */
static int value_of(const side *s, i64 i, double *value)
{
    i64 size;
    const u8 *text = text_of(s, i, &size), *p = text + stamp_size(text);
    for (int field = 0; field < 3; field++) {
        p = (const u8 *)memchr(p, ',', (size_t)(text + size - p));
        if (!p++) return 0; /* no longer the text that was scanned */
    }
    char *end;
    *value = strtod((const char *)p, &end);
    return end > (char *)p && *end == ',';
}

static void put_percent(writer *w, const side *in, i64 i, const side *su, i64 j)
{
    double under, deck;
    if (i < 0 || j < 0 || !value_of(in, i, &under) || !value_of(su, j, &deck) || deck <= 0) return;
    double percent = 100 * under / deck;
    if (isfinite(percent)) w->p += snprintf((char *)w->p, 32, "%.6g", percent);
}

/* What is known of the in-water block beyond a side; options and counts as in __init__.py. */
typedef struct {
    const i64 *offset, *sd, *low, *high;
    const u8 *status;
    const u8 *names; /* of the statuses, 16 bytes each, the first of them the length */
} clock_columns;

typedef struct {
    i64 held, percent, dropout, first, last, fresh, stale;
} options;

typedef struct {
    i64 rows, paired, fresh, alone, gaps, largest, statuses[16];
} totals;

static void put_row(writer *w, const side *in, const clock_columns *clock, i64 i, const side *su, i64 j,
                    const char *word, const options *o)
{
    put_utc(w, i < 0 ? su->time[j] : in->time[i]);
    put_columns(w, in, i);
    put_columns(w, su, j);
    put_byte(w, ',');
    i64 apart = i < 0 || j < 0 ? MISSING : in->time[i] - su->time[j];
    if (apart != MISSING) put_utc(w, su->time[j]);
    put_byte(w, ',');
    if (apart != MISSING) {
        i64 ms = floor_div(apart + 500000, 1000000);
        if (ms < 0) put_byte(w, '-');
        w->p = put_count(w->p, (u64)(ms < 0 ? -ms : ms));
    }
    put_byte(w, ',');
    put_text(w, word, (i64)strlen(word));
    put_byte(w, ',');
    if (i >= 0) put_seq(w, in->seq[i]);
    put_byte(w, ',');
    if (j >= 0) put_seq(w, su->seq[j]);
    put_byte(w, ',');
    if (i < 0) {
        put_text(w, ",,,,,,", 6);
    } else {
        const u8 *name = clock->names + 16 * clock->status[i];
        put_label(w, in, i);
        put_byte(w, ',');
        put_ms(w, clock->offset[i]);
        put_byte(w, ',');
        put_ms(w, clock->sd[i]);
        put_byte(w, ',');
        put_ms(w, apart);
        put_byte(w, ',');
        put_text(w, name + 1, name[0]);
        put_byte(w, ',');
        put_ms(w, clock->low[i]);
        put_byte(w, ',');
        put_ms(w, clock->high[i]);
    }
    if (o->percent) {
        put_byte(w, ',');
        if (!o->held || !strcmp(word, "fresh")) put_percent(w, in, i, su, j);
    }
    put_byte(w, '\n');
}

#define ROW_BYTES 400 /* more than all of a row but the two sensors' own text */

static i64 room_for(const side *in, i64 i, const side *su, i64 j)
{
    return ROW_BYTES + (i < 0 ? 0 : (i64)(in->span[i] & 0xFFFF)) + (j < 0 ? 0 : (i64)(su->span[j] & 0xFFFF));
}

static void count_pair(totals *t, i64 *tally, i64 apart)
{
    t->paired++;
    if (distance(apart, 0) > t->largest) t->largest = distance(apart, 0);
    count_in(tally, (u64)distance(apart, 0));
}

/* See Weaver in __init__.py. cursor: number of the next surface row to pass, of the next one that may be a
 * partner, and the time of the last one passed. done: in-water rows written, bytes written. */
EXPORT void qs_weave(const side *in, const clock_columns *clock, const side *su, const options *o, i64 final, i64 *cursor,
              totals *t, i64 *tally, i64 room, u8 *out, i64 *done)
{
    writer w = {out, -(1LL << 62), {0}};
    const u8 *end = out + room;
    locale_t hosts = o->percent && plain_numbers ? uselocale(plain_numbers) : (locale_t)0;
    i64 s = cursor[0] - su->first, partner = cursor[1] - su->first, before = cursor[2], i = done[0];
    for (; i <= in->n; i++) {
        if (i == in->n && !final) break;
        i64 until = i < in->n ? in->time[i] : INT64_MAX;
        while (s < su->n && (su->time[s] < until || (o->held && su->time[s] == until))) {
            if (!o->held && !is_taken(su, s)) {
                if (end - w.p < room_for(in, -1, su, s)) goto full;
                put_row(&w, in, clock, -1, su, s, "", o);
                t->rows++;
            }
            before = su->time[s++];
        }
        if (i == in->n) break;
        i64 j = -1, found = partner;
        const char *word = "missing";
        if (o->held) {
            i64 age = before == MISSING ? INT64_MAX : until - before;
            if (age <= o->stale) j = s - 1, word = age <= o->fresh ? "fresh" : "stale";
        } else if (is_taken(in, i)) {
            while (!is_taken(su, found)) found++;
            j = found++, word = "fresh";
        }
        if (end - w.p < room_for(in, i, su, j)) goto full;
        put_row(&w, in, clock, i, su, j, word, o);
        partner = found;
        t->rows++;
        t->statuses[clock->status[i] & 15]++;
        if (j >= 0) {
            count_pair(t, tally, until - su->time[j]);
            t->fresh += *word == 'f';
        } else {
            int silent = before != MISSING && s < su->n && until > before && su->time[s] - before > o->dropout;
            t->gaps += o->first <= until && until <= o->last && !silent;
            t->alone++;
        }
    }
full:
    cursor[0] = su->first + s;
    cursor[1] = su->first + partner;
    cursor[2] = before;
    done[0] = i;
    done[1] = w.p - out;
    if (hosts) uselocale(hosts);
}

/*
 * fo_slow.c: how fast targets are, and who holds up whom.
 *
 * A target is looked at when a stream starves (it wants a slot, and its targets hold all that it may have), and when an
 * operation passes the soft deadline.  A look finds a *laggard* when, on some stream,
 *
 *     by lag    the stream starves, the target is behind by half of the slots that the stream holds, and its rate is less
 *               than half of its peer's;  or
 *     by age    its oldest operation is older than the soft deadline, and its peer has completed more, or is synced.
 *
 * The peer that counts is the slowest of those that would stay anyway (they wait, or the stream keeps them): to eject a target
 * helps nobody while another that stays is no faster.  If all of them may be ejected it is the fastest.  So somebody is always
 * left that has done the same work well before, and when all are slow nobody is a laggard.
 *
 *     strikes   0 --laggard--> 1 --laggard--> 2 --laggard--> 3 = the verdict: an event; under FO_SLOW_EJECT the leg goes
 *               each look that finds none takes one back, and so does each patience/3 without a look
 *
 * What it does not know: how fast a peer would be with more in flight.  While a laggard paces it, it has little to do at a
 * time, and its rate is that of little at a time.  So a peer whose speed comes from many writes in flight may look slower than
 * it is, and the verdict be withheld: the error is on the side of waiting.  Nor is a target slow for being shared: its rate is
 * that of all its streams together.
 *
 * Looks follow one another after patience/3.  Nothing here runs while no stream starves and nothing is late: a healthy stream
 * pays a few additions for each write that completes.
 */
#include "fo_step_parts.h"

#include <string.h>

#define FADE 64u /* writes: the memory of a rate */
#define LATENCY_FADE 8u
#define TIMES_FASTER 2u /* what makes a peer faster "well before", and not just a little */

/* ---- pace ---- */

void fo_pace_start(fo_machine *m, fo_target *t) { t->pace_ns = m->now; }

void fo_pace_done(fo_machine *m, fo_target *t, const fo_op *op) {
    uint64_t latency = m->now - op->first_ns;
    t->pace_bytes += op->length - t->pace_bytes / FADE;
    t->pace_time += m->now - t->pace_ns - t->pace_time / FADE;
    t->pace_ns = m->now;
    t->latency_ns = t->latency_ns == 0 ? latency : t->latency_ns - t->latency_ns / LATENCY_FADE + latency / LATENCY_FADE;
}

/* Time since the last completion counts as soon as it is longer than what was usual: else a target that hangs would keep
 * the rate that it had. */
uint64_t fo_machine_target_rate(const fo_machine *m, uint16_t target) {
    const fo_target *t = &m->targets[target];
    uint64_t writes = t->pace_time, open = t->busy != 0 ? m->now - t->pace_ns : 0;
    uint64_t microseconds = (writes + open) / 1000 + 1;
    return t->pace_bytes / microseconds * 1000000 + t->pace_bytes % microseconds * 1000000 / microseconds;
}

/* ---- who is behind whom ---- */

static uint32_t outstanding(const fo_lane_leg *l) { return l->queued + l->waiting + l->inflight; }

static bool stays(const fo_machine *m, const fo_flow *f, uint32_t leg) {
    return (f->keep >> leg & 1u) != 0 || !m->targets[f->legs[leg].target].eject_slow;
}

/* The peer that this leg is measured against, or FO_NIL. */
static uint32_t peer_of(const fo_machine *m, const fo_flow *f, uint32_t leg) {
    uint32_t found = FO_NIL;
    bool found_stays = false;
    for (uint32_t i = 0; i < f->count; i++) {
        const fo_lane_leg *l = &f->legs[i];
        bool other_stays = stays(m, f, i);
        if (i == leg || (l->state != FO_LEG_ACTIVE && l->state != FO_LEG_SYNCED)) {
            continue;
        }
        if (found == FO_NIL || (other_stays && !found_stays) ||
            (other_stays == found_stays && (outstanding(l) > outstanding(&f->legs[found])) == other_stays)) {
            found = i;
            found_stays = other_stays;
        }
    }
    return found;
}

/* Half of what the stream holds: on a target that keeps up no more is queued than on its peers. */
static uint32_t much(const fo_flow *f) { return f->held / 2 > 1 ? f->held / 2 : 1; }

static bool late_by_lag(const fo_machine *m, const fo_flow *f, const fo_lane_leg *l, const fo_lane_leg *peer) {
    return f->starved && outstanding(l) >= outstanding(peer) + much(f) &&
           fo_machine_target_rate(m, l->target) < fo_machine_target_rate(m, peer->target) / TIMES_FASTER;
}

static uint64_t age(const fo_machine *m, const fo_target *t) {
    return t->inflight.head != FO_NIL ? m->now - m->ops[t->inflight.head].submitted_ns : 0;
}

static bool late_by_age(const fo_machine *m, const fo_lane_leg *l, const fo_lane_leg *peer) {
    const fo_target *t = &m->targets[l->target];
    return t->inflight.head != FO_NIL && age(m, t) >= t->soft_ns &&
           (peer->completed > l->completed || peer->state == FO_LEG_SYNCED);
}

/* The peer that this leg holds up, or FO_NIL. */
static uint32_t held_up_by(const fo_machine *m, const fo_flow *f, uint32_t leg) {
    const fo_lane_leg *l = &f->legs[leg];
    uint32_t peer;
    if (l->state != FO_LEG_ACTIVE) {
        return FO_NIL;
    }
    peer = peer_of(m, f, leg);
    if (peer == FO_NIL || (!late_by_lag(m, f, l, &f->legs[peer]) && !late_by_age(m, l, &f->legs[peer]))) {
        return FO_NIL;
    }
    return peer;
}

/* ---- the verdict ---- */

static fo_outcome describe(const fo_machine *m, const fo_lane_leg *l, const fo_lane_leg *peer) {
    const fo_target *t = &m->targets[l->target];
    uint32_t oldest = t->inflight.head;
    fo_outcome out;
    memset(&out, 0, sizeof out);
    out.code = FO_OUTCOME_SLOW;
    out.cls = FO_CLASS_DEVICE; /* no errno says so, but who else could it be */
    out.phase = oldest != FO_NIL ? m->ops[oldest].kind : FO_OP_WRITE;
    out.offset = oldest != FO_NIL ? m->ops[oldest].offset : 0;
    out.length = peer->completed > l->completed ? peer->completed - l->completed : 0;
    out.done = l->completed;
    out.latency_ns = age(m, t);
    return out;
}

static void condemn(fo_machine *m, uint32_t flow, uint32_t leg, uint32_t peer) {
    fo_flow *f = &m->flows[flow];
    fo_lane_leg *l = &f->legs[leg];
    fo_outcome why = describe(m, l, &f->legs[peer]);
    if (!l->accused) {
        uint64_t rate = fo_machine_target_rate(m, l->target);
        uint64_t peers = fo_machine_target_rate(m, f->legs[peer].target);
        l->accused = true; /* told once, so that the ring has room for it (invariant 7) */
        fo_event_laggard(m, flow, leg, &why, (uint32_t)(rate * 1000 / (peers + 1)));
    }
    if (!stays(m, f, leg)) {
        FO_ASSERT(f->legs[peer].state == FO_LEG_ACTIVE || f->legs[peer].state == FO_LEG_SYNCED); /* invariant 11 */
        fo_leg_eject(m, flow, leg, &why);
    }
}

/* Condemns when the strikes are full.  True: some stream is held up. */
static bool look(fo_machine *m, uint16_t target, bool full) {
    bool any = false;
    for (uint32_t flow = 0; flow < m->flow_count; flow++) {
        const fo_flow *f = &m->flows[flow];
        for (uint32_t leg = 0; f->id != 0 && leg < f->count; leg++) {
            uint32_t peer = f->legs[leg].target == target ? held_up_by(m, f, leg) : FO_NIL;
            any = any || peer != FO_NIL;
            if (full && peer != FO_NIL) {
                condemn(m, flow, leg, peer);
            }
        }
    }
    return any;
}

static uint64_t window_of(const fo_target *t) {
    return t->patience_ns / FO_STRIKES != 0 ? t->patience_ns / FO_STRIKES : 1;
}

uint32_t fo_machine_target_strikes(const fo_machine *m, uint16_t target, uint64_t now) {
    const fo_target *t = &m->targets[target];
    uint64_t unseen = now > t->judged_ns ? (now - t->judged_ns) / window_of(t) : 0;
    uint64_t back = unseen > 1 ? unseen - 1 : 0;
    return back < t->strikes ? t->strikes - (uint32_t)back : 0;
}

static void look_again(const fo_machine *m, fo_target *t) {
    uint64_t window = window_of(t);
    t->watch_ns = m->now > FO_FOREVER - window ? FO_FOREVER : m->now + window;
}

void fo_slow_judge(fo_machine *m, uint16_t target) {
    fo_target *t = &m->targets[target];
    if (m->now < t->watch_ns) { /* somebody starves since a moment ago: that is no evidence yet */
        t->watch_wanted = false;
        look_again(m, t);
        return;
    }
    t->strikes = fo_machine_target_strikes(m, target, m->now);
    t->judged_ns = m->now;
    t->watch_wanted = false;
    t->watch_ns = FO_FOREVER;
    if (!look(m, target, false)) {
        t->strikes -= t->strikes != 0 ? 1 : 0;
        return;
    }
    t->strikes += t->strikes < FO_STRIKES ? 1 : 0;
    look_again(m, t);
    if (t->strikes == FO_STRIKES) {
        (void)look(m, target, true);
    }
}

void fo_slow_starved(fo_machine *m, uint32_t flow) {
    fo_flow *f = &m->flows[flow];
    uint32_t least = UINT32_MAX;
    f->starved = true;
    for (uint32_t i = 0; i < f->count; i++) {
        const fo_lane_leg *l = &f->legs[i];
        if (l->state == FO_LEG_ACTIVE && outstanding(l) < least) { /* a stream that fills is not sealed: none is synced */
            least = outstanding(l);
        }
    }
    for (uint32_t i = 0; i < f->count; i++) {
        const fo_lane_leg *l = &f->legs[i];
        fo_target *t = &m->targets[l->target];
        if (l->state == FO_LEG_ACTIVE && outstanding(l) >= least + much(f) && t->watch_ns == FO_FOREVER &&
            !t->watch_wanted) {
            t->watch_wanted = true;
            m->want_step = true;
        }
    }
}

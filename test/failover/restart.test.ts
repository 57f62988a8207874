/** An agent of the pair that is restarted as announced. */
import { describe, expect, test } from "bun:test";
import { nextDeadlineMs } from "../../src/failover/deadlines.ts";
import { decide } from "../../src/failover/decide.ts";
import type { Event } from "../../src/failover/events.ts";
import { SETTINGS } from "./settings.ts";
import { held, NOW, round, standby, told } from "./states.ts";

describe("a secondary's agent that is restarted as announced", () => {
  const pausing = decide(held, { type: "peer_restarts", request: 1, generation: 5 }, NOW - 20);
  const paused: Event = { type: "checkpoints_paused", request: 1, whose: "peer", generation: 5 };
  const announced = decide(pausing.state, paused, NOW).state;
  const closed = decide(announced, { type: "control_closed" }, NOW + 10);
  const refused: Event = {
    type: "heartbeat_answered",
    path: "control",
    sentMs: NOW + 300,
    generation: 5,
    accepted: false,
  };

  test("is waited for, for as long as is configured, and prolongs no lease meanwhile", () => {
    expect(pausing.actions.map(told)).toEqual(["pause_checkpoints"]);
    expect(decide(pausing.state, paused, NOW).actions.map(told)).toEqual(["yes"]);
    expect(closed).toMatchObject({ state: { phase: "protected" }, actions: [] });
    expect(decide(closed.state, refused, NOW + 400)).toMatchObject({
      state: { phase: "protected" },
      actions: [],
    });
    const late = NOW + SETTINGS.restartMs;
    expect(nextDeadlineMs(closed.state)).toBe(late);
    expect(decide(closed.state, round, late - 1).state.phase).toBe("protected");
    expect(decide(closed.state, round, late).state.phase).toBe("going_alone");
  });

  test("goes on when it is back, and counts as heard", () => {
    const back = decide(closed.state, { type: "peer_is_back", request: 1, generation: 5 }, NOW + 2_000);
    expect(back.actions.map(told)).toEqual(["catch_up", "yes"]);
    expect(decide(back.state, round, NOW + 2_010).state.phase).toBe("protected");
    expect(decide(back.state, { ...refused, sentMs: NOW + 2_020 }, NOW + 2_030).state.phase).toBe(
      "going_alone",
    );
  });

  test("that does not end after all is not waited for any longer", () => {
    const answered: Event = { ...refused, sentMs: NOW + SETTINGS.restartMs, accepted: true };
    const { state: heard } = decide(announced, answered, NOW + SETTINGS.restartMs);
    const later = { ...heard, heardMs: { ...heard.heardMs, control: NOW + SETTINGS.restartMs } };
    const { state: on, actions } = decide(later, round, NOW + SETTINGS.restartMs + 1);
    expect(on.phase).toBe("protected");
    expect(actions.map(({ type }) => type)).toEqual(["catch_up"]);
  });

  test("is not waited for by a VM whose replica is lost otherwise", () => {
    const broken = decide(closed.state, { type: "pair_broken", reason: "" }, NOW + 20).state;
    expect(broken.phase).toBe("going_alone");
    expect(broken.peerBackByMs).toBe(Number.NEGATIVE_INFINITY);
  });
});

describe("a primary's agent that is restarted as announced", () => {
  const announced = decide(standby, { type: "peer_restarts", request: 1, generation: 5 }, NOW).state;
  const closed = decide(announced, { type: "control_closed" }, NOW + 10).state;

  test("is waited for, for as long as is configured", () => {
    expect(closed.claim).toBeUndefined();
    const late = NOW + SETTINGS.restartMs;
    expect(decide(closed, round, late - 1).state.claim).toBeUndefined();
    const { state: given, actions } = decide(closed, round, late);
    expect(given.claim).toBeDefined();
    // Its lease ran out long ago.
    expect(actions.map(({ type }) => type)).toEqual(["read_record"]);
  });

  test("is waited for no longer once it is back", () => {
    const back = decide(closed, { type: "resume_wanted", request: 1, generation: 5 }, NOW + 400).state;
    expect(decide(back, { type: "control_closed" }, NOW + 500).state.claim).toBeDefined();
  });

  test("gets the VM taken over at once if it gives up", () => {
    const { actions } = decide(closed, { type: "peer_gave_up", generation: 5, reason: "" }, NOW + 10);
    expect(actions.map(({ type }) => type)).toEqual(["read_record"]);
  });

  test("says so of its own generation only", () => {
    const other = decide(standby, { type: "peer_restarts", request: 1, generation: 4 }, NOW).state;
    expect(decide(other, { type: "control_closed" }, NOW + 10).state.claim).toBeDefined();
  });
});

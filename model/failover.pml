/*
 * Who may send, who takes over: two agents, one arbiter, one VM. README.md beside this file says what is
 * assumed, what is checked and how to run it.  To read it: first the state, then what must hold (assertions
 * in `lets_out` and `apply`), then the steps of the holder, of the other one, of an agent that starts, and
 * last what the world does (arbiter, losses, clocks). Each step is one inline `name(i)` with its guard
 * `may_name(i)`: i is the agent's own host, OTHER(i) its peer. A step is indivisible; between two steps of an
 * agent any time may pass and anything may happen, so an agent that is slow, starved or stopped (SIGSTOP)
 * needs no step of its own.  Nothing in it grows for ever. Times are kept as "ticks left" or "ticks since",
 * up to a bound. A revision is not a number: whoever remembers one has a bit `fresh`, which every write to
 * the record clears, and a compare-and-swap succeeds if and only if the bit is still set. Only generations
 * and terms are numbers; MAX_GENERATION and MAX_TERM bound them.  Variants: -DLATE_ENTER (requests outlive
 * the agent that they were sent to), -DRECOVERY (from every state back to protected). Each -DMUTATE_...
 * leaves one of the protocol's rules out; each of them makes an assertion fail.
 */

/*
 * --- bounds ------------------------------------------------------------------------------------------------
 * --------------
 */

/* In ticks. */
#ifndef LEASE
#define LEASE 2
#endif
#ifdef MUTATE_NO_MARGIN
#define MARGIN 0
#endif
#ifndef MARGIN
#define MARGIN 1
#endif
/* From its last answer to the moment at which a secondary may take over. */
#define DUE (LEASE + MARGIN)
/*
 * One host's clock may gain a tick on the other's, then again after so many ticks of both: the drift that
 * MARGIN covers.
 */
#ifdef MUTATE_DRIFT
#define DRIFT_PERIOD 1
#endif
#ifndef DRIFT_PERIOD
#define DRIFT_PERIOD DUE
#endif

#ifndef MAX_GENERATION
#define MAX_GENERATION 2
#endif
#ifndef MAX_TERM
#define MAX_TERM 3
#endif

/*
 * --- state -------------------------------------------------------------------------------------------------
 * --------------
 */

mtype:phase = {
  starting, stopped,
  /*
   * The holder. It renews its lease itself in the first two; in the next three only the peer's answers do,
   * and in the two of an agent that resumes its predecessor's replica; then nothing.
   */
  alone, protecting, primed, recording, protected, resuming, rerecording, going_alone,
  /* The other one. Resting: its agent ends, and begins again at once. */
  waiting, standby, resting, claiming, taking_over
};

/* What a host's QEMU has: `replica` covers all output that any client has seen, `stale` does not any more. */
mtype:copy = { nothing, lost, stale, replica, vm };

mtype:goal = { none, to_valid, to_invalid, to_disown, to_take };
mtype:outcome = { unknown, swapped, conflict };

/* A compare-and-swap under way. */
typedef Write {
  mtype:goal goal;
  bool fresh;
  byte generation;
  byte term
};

/*
 * The age of a heartbeat whose sender has stopped waiting for the answer, or had not begun to: the answer
 * does not count.
 */
#define VOID (LEASE + 1)

/*
 * A heartbeat or the answer to one; generation 0: there is none. `age` by the clock of the heartbeat's
 * sender, up to LEASE.
 */
typedef Beat {
  byte generation;
  byte age
};

typedef Host {
  mtype:phase phase;
  mtype:copy copy;
  /* The kernel lets the VM's output through while this is not 0, whatever has become of the agent. */
  byte lease;
  byte generation;
  /* standby, claiming: ticks since the last answered heartbeat; DUE also when the holder has given up. */
  byte since;
  /* claiming: the record as read is still the record. */
  bool read_fresh;
  /*
   * The call that the agent waits for, its outcome, and one that it waits for no more but which may still
   * happen.
   */
  Write call;
  mtype:outcome outcome;
  Write late;
  /*
   * What this host has sent and what is on its way back. A message that stays there for ever is a lost one.
   */
  Beat heartbeat;
  Beat answer;
  byte enter;
#ifdef LATE_ENTER
  /* An earlier one that has not arrived yet. */
  byte late_enter;
#endif
  byte gave_up
};

typedef Record {
  byte term;
  byte generation;
  bit holder;
  bool valid
};

Host h[2];
Record record;
/* Ticks of both clocks since one of them last gained on the other. */
byte since_drift;
#ifdef LATE_ENTER
/* The generation last used by anybody. */
byte generations;
#endif
#ifdef RECOVERY
bool qemu_lost;
#endif

#define OTHER(i) (1 - (i))

/* Only heartbeats that the peer has answered prolong the lease. */
#define leans_on_peer(i) (h[i].phase == primed || h[i].phase == recording || h[i].phase == protected \
  || h[i].phase == resuming || h[i].phase == rerecording)

/*
 * --- what must hold
 * ------------------------------------------------------------------------------------------------------
 */

/* The kernel of host i lets output through for `ticks` more, unless it does so for longer already. */
inline lets_out(i, ticks) {
  if
  :: ticks > h[i].lease -> h[i].lease = ticks
  :: else
  fi;
  /*
   * ONE PRIMARY: never two hosts at the same instant. A lease only shrinks otherwise, so this is the place to
   * look.
   */
  assert(h[0].lease == 0 || h[1].lease == 0);
  /* NO CONTRADICTION: the sender covers all that clients have seen. (A QEMU that is gone sends nothing.) */
  assert(h[i].lease == 0 || h[i].copy == vm || h[i].copy == lost)
}

/* The record is written. */
inline apply(w, i) {
  if
  :: w.goal == to_take ->
     /*
      * NO OLD REPLICA: neither an invalid one nor one of another generation, nor one that a restart has
      * thrown away.
      */
     assert(record.valid && record.generation == w.generation);
     assert(h[i].copy == replica || h[i].copy == lost);
     /* TERM: grows with each change of holder, and with nothing else. */
     assert(record.holder == OTHER(i) && w.term > record.term);
     record.holder = i
  :: w.goal == to_disown -> assert(record.holder == OTHER(i) && w.term == record.term)
  :: else -> assert(record.holder == i && w.term == record.term)
  fi;
  record.term = w.term;
  record.generation = w.generation;
  record.valid = (w.goal == to_valid);
  forget(w);
  h[0].call.fresh = false;
  h[1].call.fresh = false;
  h[0].read_fresh = false;
  h[1].read_fresh = false;
#ifndef MUTATE_BLIND_WRITE
  /* A late write of an older revision does nothing when it arrives. */
  forget(h[0].late);
  forget(h[1].late)
#endif
}

inline forget(w) {
  w.goal = none;
  w.fresh = false;
  w.generation = 0;
  w.term = 0
}

/*
 * --- calls to the arbiter
 * ------------------------------------------------------------------------------------------------
 */

#define idle(i) (h[i].call.goal == none && h[i].outcome == unknown)

/* Reads the record's revision and sends a write on top of it; time passes before it arrives, if it does. */
inline send_write(i, what, number, of_term) {
  h[i].call.goal = what;
  h[i].call.fresh = true;
  h[i].call.generation = number;
  h[i].call.term = of_term;
  h[i].outcome = unknown
}

/*
 * The agent waits no longer. What was on its way may still arrive, once, at any time (an earlier such call is
 * lost).
 */
inline stop_waiting(i) {
  if
#ifdef MUTATE_BLIND_WRITE
  :: h[i].call.goal != none ->
#else
  :: h[i].call.goal != none && h[i].call.fresh ->
#endif
     h[i].late.goal = h[i].call.goal;
     h[i].late.fresh = h[i].call.fresh;
     h[i].late.generation = h[i].call.generation;
     h[i].late.term = h[i].call.term
  :: else
  fi;
  forget(h[i].call);
  h[i].outcome = unknown
}

/* The arbiter does not answer in time: the write may have happened or not, the next read tells. */
#define may_time_out(i) (h[i].call.goal != none || h[i].outcome != unknown)
inline time_out(i) {
  stop_waiting(i)
}

/*
 * --- the holder
 * ----------------------------------------------------------------------------------------------------------
 */

/*
 * What a phase does not need is forgotten, so that states that differ in nothing else are one. Answers to
 * heartbeats that were sent before the replica was primed do not count: the holder has renewed its lease by
 * itself since.
 */
inline enter_phase(i, p) {
  h[i].phase = p;
  h[i].read_fresh = false;
  if
  :: h[i].phase != standby && h[i].phase != claiming -> h[i].since = 0
  :: else
  fi;
  if
  :: h[i].phase == starting || h[i].phase == stopped || h[i].phase == waiting -> h[i].generation = 0
  :: else
  fi;
#ifndef MUTATE_EARLY_ANSWER
  if
  :: !leans_on_peer(i) ->
     h[i].answer.generation = 0;
     h[i].answer.age = 0;
     if
     :: h[i].heartbeat.generation != 0 -> h[i].heartbeat.age = VOID
     :: else
     fi
  :: else
  fi
#endif
}

/* Nothing of the VM leaves this host any more. */
inline stop(i) {
  stop_waiting(i);
  h[i].lease = 0;
  enter_phase(i, stopped)
}

/* Output leaves without a counterpart: no other copy covers it from now on. */
inline run_alone(i) {
  stop_waiting(i);
  if
  :: h[i].copy == lost -> stop(i)
  :: else ->
     if
     :: h[i].copy == replica -> h[i].copy = vm
     :: else
     fi;
     if
     :: h[OTHER(i)].copy == replica || h[OTHER(i)].copy == vm -> h[OTHER(i)].copy = stale
     :: else
     fi;
     enter_phase(i, alone);
     lets_out(i, LEASE)
  fi
}

/* A completed round of the agent. The deadline is absolute, so one that is stored late is only shorter. */
#define may_renew(i) ((h[i].phase == alone || h[i].phase == protecting) && h[i].lease < LEASE)
inline renew(i) {
  lets_out(i, LEASE)
}

#ifdef LATE_ENTER
#define last_generation(i) generations
#else
#define last_generation(i) h[i].generation
#endif
#define may_protect(i) (h[i].phase == alone && last_generation(i) < MAX_GENERATION)
inline protect(i) {
  last_generation(i)++;
  h[i].generation = last_generation(i);
#ifdef LATE_ENTER
  if
  :: h[i].enter != 0 -> h[i].late_enter = h[i].enter
  :: else
  fi;
#endif
  h[i].enter = h[i].generation;
  enter_phase(i, protecting)
}

#define may_fail_to_protect(i) (h[i].phase == protecting)
inline fail_to_protect(i) {
  run_alone(i)
}

/* QEMU's checkpoints: only between two that are in touch, and only into a QEMU that waits for them. */
#define may_prime(i) (h[i].phase == protecting && h[i].copy == vm && h[OTHER(i)].phase == standby \
  && h[OTHER(i)].generation == h[i].generation && h[OTHER(i)].copy == nothing)
inline prime(i) {
  h[OTHER(i)].copy = replica;
  enter_phase(i, primed)
}

#ifdef MUTATE_EARLY_ANSWER
#define new_age(i) 0
#else
#define new_age(i) (leans_on_peer(i) -> 0 : VOID)
#endif
/* Also while the replica is being made, so that the peer sees its primary; those answers do not count. */
#define may_send_heartbeat(i) ((leans_on_peer(i) || h[i].phase == protecting) \
  && (h[i].heartbeat.generation != h[i].generation || h[i].heartbeat.age != new_age(i)))
inline send_heartbeat(i) {
  h[i].heartbeat.generation = h[i].generation;
  h[i].heartbeat.age = new_age(i)
}

#define may_hear_answer(i) (leans_on_peer(i) && h[i].answer.generation == h[i].generation)
inline hear_answer(i) {
#ifdef MUTATE_LEASE_FROM_RECEIPT
  h[i].answer.age = 0;
#endif
  if
  :: h[i].answer.age < LEASE -> lets_out(i, LEASE - h[i].answer.age)
  :: else
  fi;
  h[i].answer.generation = 0;
  h[i].answer.age = 0;
  if
  :: h[i].phase == primed -> enter_phase(i, recording)
#ifdef MUTATE_RESUME_UNRECORDED
  :: h[i].phase == resuming -> enter_phase(i, protected)
#else
  :: h[i].phase == resuming -> enter_phase(i, rerecording)
#endif
  :: else
  fi
}

#define may_record_valid(i) (h[i].phase == recording && idle(i))
inline record_valid(i) {
  if
  :: record.holder != i -> stop(i)
  :: else -> send_write(i, to_valid, h[i].generation, record.term)
  fi
}

/* Written even if it stands there: an earlier "invalid" fails only at a new revision. */
#define may_record_again(i) (h[i].phase == rerecording && idle(i))
inline record_again(i) {
  if
  :: record.holder != i -> stop(i)
  :: record.holder == i && (!record.valid || record.generation != h[i].generation) ->
     stop_waiting(i);
     enter_phase(i, going_alone)
  :: else -> send_write(i, to_valid, h[i].generation, record.term)
  fi
}

#define may_be_protected(i) ((h[i].phase == recording || h[i].phase == rerecording) \
  && h[i].outcome == swapped)
inline be_protected(i) {
  h[i].outcome = unknown;
  enter_phase(i, protected)
}

/* Silence, a refused heartbeat, trouble in QEMU or on the link: any reason, at any moment. */
#define may_lose_replica(i) (leans_on_peer(i))
inline lose_replica(i) {
#ifdef MUTATE_ALONE_UNRECORDED
  run_alone(i)
#else
  stop_waiting(i);
  enter_phase(i, going_alone)
#endif
}

/* Written even if "invalid" stands there: a late write of "valid" fails only at a new revision. */
#define may_record_alone(i) (h[i].phase == going_alone && idle(i))
inline record_alone(i) {
  if
  :: record.holder != i -> stop(i)
#ifdef MUTATE_INVALID_KEPT
  :: record.holder == i && !record.valid -> run_alone(i)
#endif
  :: else -> send_write(i, to_invalid, h[i].generation, record.term)
  fi
}

#define may_go_alone(i) (h[i].phase == going_alone && h[i].outcome == swapped)
inline go_alone(i) {
  run_alone(i)
}

#ifdef MUTATE_NO_RETRY
#define may_try_again(i) false
#else
#define may_try_again(i) (h[i].outcome == conflict)
#endif
inline try_again(i) {
  h[i].outcome = unknown
}

/* Its QEMU is gone, or (protected) it hands over: blocked first, then the other one is told. */
#define may_give_up(i) (h[i].phase == protected \
  || (h[i].copy == lost && (leans_on_peer(i) || h[i].phase == going_alone)))
inline give_up(i) {
  h[i].gave_up = h[i].generation;
#ifndef MUTATE_GIVE_UP_UNBLOCKED
  stop(i)
#else
  stop_waiting(i);
  enter_phase(i, stopped)
#endif
}

/* Its QEMU is gone, and there is no replica. */
#define may_end(i) (h[i].copy == lost && (h[i].phase == alone || h[i].phase == protecting))
inline end(i) {
  stop(i)
}

/*
 * The replica that is to take over does not, and the administrator wants the VM booted from this host's
 * disks. That is another VM, which the model does not follow; before it may start, the record must forbid the
 * takeover.
 */
#define may_boot(i) (h[i].phase == stopped && h[i].copy == lost && record.holder == i && record.valid \
  && idle(i))
inline boot(i) {
#ifdef MUTATE_BOOT_UNRECORDED
  h[i].copy = vm;
  run_alone(i)
#else
  send_write(i, to_invalid, record.generation, record.term)
#endif
}

#define may_have_booted(i) (h[i].phase == stopped && h[i].outcome == swapped)
inline have_booted(i) {
  h[i].outcome = unknown
}

/*
 * --- the other one
 * -------------------------------------------------------------------------------------------------------
 */

#ifdef LATE_ENTER
#define may_follow_late(i) (h[i].phase == waiting && h[OTHER(i)].late_enter != 0)
inline follow_late(i) {
  enter_phase(i, standby);
  h[i].generation = h[OTHER(i)].late_enter;
  h[OTHER(i)].late_enter = 0
}
#endif

#define may_follow(i) (h[i].phase == waiting && h[OTHER(i)].enter != 0)
inline follow(i) {
  enter_phase(i, standby);
  h[i].generation = h[OTHER(i)].enter;
#ifndef MUTATE_ENTER_TWICE
  h[OTHER(i)].enter = 0
#endif
}

#ifdef MUTATE_ANSWER_WHEN_COMMITTED
#define answers(i) (h[i].phase == standby || h[i].phase == claiming || h[i].phase == taking_over)
#else
#define answers(i) (h[i].phase == standby || h[i].phase == claiming)
#endif

/* The heartbeat stays where it is: it may come again (duplicated) and it may come late. */
#define may_answer_heartbeat(i) (answers(i) && h[i].generation != 0 \
  && h[OTHER(i)].heartbeat.generation == h[i].generation)
inline answer_heartbeat(i) {
  if
  :: h[OTHER(i)].heartbeat.age != VOID ->
     h[OTHER(i)].answer.generation = h[i].generation;
     h[OTHER(i)].answer.age = h[OTHER(i)].heartbeat.age
  :: else
  fi;
  if
  :: h[i].phase != taking_over ->
     h[i].since = 0;
     enter_phase(i, standby)
  :: else
  fi
}

#define may_hear_give_up(i) ((h[i].phase == standby || h[i].phase == claiming) && h[i].since < DUE \
  && h[OTHER(i)].gave_up == h[i].generation)
inline hear_give_up(i) {
  h[i].since = DUE
}

#ifdef MUTATE_VALID_UNCHECKED
#define record_valid_ok true
#else
#define record_valid_ok record.valid
#endif
#ifdef MUTATE_GENERATION_UNCHECKED
#define record_generation_ok(i) true
#else
#define record_generation_ok(i) (record.generation == h[i].generation)
#endif
#define may_take(i) (record.holder == OTHER(i) && record_valid_ok && record_generation_ok(i))

/*
 * The holder seems lost, for whatever reason: the record decides what this replica is worth. A heartbeat that
 * comes while the lease is waited for ends the claim.
 */
#define may_claim(i) (h[i].phase == standby && record.term < MAX_TERM)
inline claim(i) {
  if
  :: may_take(i) ->
     enter_phase(i, claiming);
     h[i].read_fresh = true
  :: else -> stop(i)
  fi
}

#ifdef MUTATE_LEASE_NOT_WAITED_FOR
#define lease_over(i) true
#else
#define lease_over(i) (h[i].since == DUE)
#endif

/* From here on the record may name this host. */
#define may_commit(i) (h[i].phase == claiming && lease_over(i))
inline commit(i) {
  send_write(i, to_take, h[i].generation, record.term + 1);
  h[i].call.fresh = h[i].read_fresh;
  enter_phase(i, taking_over)
}

#define may_take_again(i) (h[i].phase == taking_over && idle(i))
inline take_again(i) {
  if
  :: record.holder == i -> run_alone(i) /* an earlier write, whose answer was lost */
  :: record.holder != i && may_take(i) -> send_write(i, to_take, h[i].generation, record.term + 1)
  :: else -> stop(i)
  fi
}

#define may_be_promoted(i) (h[i].phase == taking_over && h[i].outcome == swapped)
inline be_promoted(i) {
  run_alone(i)
}

/* The replica's QEMU fails, or the holder abandons it. */
#define may_be_useless(i) (h[i].phase == standby || h[i].phase == claiming)
inline be_useless(i) {
  stop(i)
}

/*
 * --- an agent that starts
 * ------------------------------------------------------------------------------------------------
 */

/*
 * It ends at any moment (and a frozen one lets the kernel's lease run down first). A new one blocks before
 * anything else, unless it finds the primary of a pair: then the lease stays as it is. Its connections end
 * with it: what was asked of it there, and what it has asked, is gone. Writes to the arbiter are not.
 */
#define may_restart(i) (h[i].phase != starting)
inline restart(i) {
  if
  :: (leans_on_peer(i) || h[i].phase == going_alone) && h[i].copy == vm -> stop_waiting(i)
  :: else -> stop(i)
  fi;
  enter_phase(i, starting);
  h[i].answer.generation = 0;
  h[i].answer.age = 0;
#if !defined(LATE_ENTER) && !defined(MUTATE_ENTER_TWICE)
  h[OTHER(i)].enter = 0;
  h[i].enter = 0
#endif
}

/*
 * As announced: nothing of a takeover is under way, and the primary makes no checkpoint that it would not
 * hear of.
 */
#define may_rest(i) (h[i].phase == standby && h[i].since < DUE)
inline rest(i) {
  enter_phase(i, resting)
}

/* It counts from now: nothing was answered later. */
#define may_follow_again(i) (h[i].phase == resting)
inline follow_again(i) {
  if
  :: record.holder == OTHER(i) && record.valid && record.generation == h[i].generation ->
     enter_phase(i, standby);
#ifdef MUTATE_REST_COUNTS
     h[i].since = DUE
#endif
  :: else -> stop(i)
  fi
}

inline wait_for_holder(i) {
  stop_waiting(i);
  h[i].lease = 0;
  h[i].copy = nothing;
  enter_phase(i, waiting)
}

#ifdef MUTATE_RESUME_AFTER_GIVE_UP
#define has_given_up(i) false
#else
#define has_given_up(i) (h[i].gave_up == record.generation)
#endif
/* The replica of the earlier agent: its own agent says whether it still stands by. */
#define may_resume(i) (h[i].phase == starting && idle(i) && record.holder == i && h[i].copy == vm \
  && record.valid && !has_given_up(i))
inline resume(i) {
  h[i].generation = record.generation;
#ifdef MUTATE_RESUME_UNANSWERED
  lets_out(i, LEASE);
#endif
  enter_phase(i, resuming)
}

#define may_start(i) (h[i].phase == starting && idle(i))
inline start(i) {
  if
  :: record.holder == i ->
#ifdef MUTATE_FRESH_QEMU_ADOPTED
     if
     :: h[i].copy == lost -> h[i].copy = stale
     :: else
     fi;
#endif
     if
     :: h[i].copy == lost -> stop(i)
     :: else ->
#ifdef MUTATE_RESTART_UNRECORDED
        h[i].generation = record.generation;
        run_alone(i)
#else
        send_write(i, to_invalid, record.generation, record.term)
#endif
     fi
#ifndef MUTATE_RESTART_UNDISOWNED
  /*
   * Its replica is given up: the record must say so, also because a takeover of its earlier life may still be
   * on its way.
   */
  :: record.holder != i && record.valid -> send_write(i, to_disown, record.generation, record.term)
#endif
  :: else -> wait_for_holder(i)
  fi
}

#define may_have_started(i) (h[i].phase == starting && h[i].outcome == swapped)
inline have_started(i) {
  if
  :: record.holder == i ->
     h[i].generation = record.generation;
     run_alone(i)
  :: else -> wait_for_holder(i)
  fi
}

/*
 * --- the world
 * -----------------------------------------------------------------------------------------------------------
 */

#ifdef MUTATE_BLIND_WRITE
#define succeeds(w) true
#else
#define succeeds(w) (w.fresh)
#endif

#define may_arrive(i) (h[i].call.goal != none)
inline arrive(i) {
  if
  :: succeeds(h[i].call) ->
     apply(h[i].call, i);
     h[i].outcome = swapped
  :: else ->
     forget(h[i].call);
     h[i].outcome = conflict
  fi
}

#define may_arrive_late(i) (h[i].late.goal != none)
inline arrive_late(i) {
  apply(h[i].late, i)
}

#define may_lose_qemu(i) (h[i].copy == vm || h[i].copy == replica)
inline lose_qemu(i) {
#ifdef RECOVERY
  qemu_lost = true;
#endif
  h[i].copy = lost
}

inline tick(i) {
  if
  :: h[i].lease > 0 -> h[i].lease--
  :: else
  fi;
  if
  :: h[i].heartbeat.generation != 0 && h[i].heartbeat.age < LEASE -> h[i].heartbeat.age++
  :: else
  fi;
  if
  :: h[i].answer.generation != 0 && h[i].answer.age < LEASE -> h[i].answer.age++
  :: else
  fi;
  if
  :: (h[i].phase == standby || h[i].phase == claiming) && h[i].since < DUE -> h[i].since++
  :: else
  fi
}

proctype clocks() {
  do
  :: d_step {
       true ->
       printf("tick\n");
       tick(0);
       tick(1);
       if
       :: since_drift < DRIFT_PERIOD -> since_drift++
       :: else
       fi
     }
  :: d_step { since_drift == DRIFT_PERIOD -> since_drift = 0; printf("tick of host 0 only\n"); tick(0) }
  :: d_step { since_drift == DRIFT_PERIOD -> since_drift = 0; printf("tick of host 1 only\n"); tick(1) }
  od
}

/* The steps are named when a trail is replayed. */
#define SENTENCE(words) #words
#define STEP(name) d_step { may_##name(i) -> printf(SENTENCE(host %d: name\n), i); name(i) }

proctype host(bit i) {
  do
  :: STEP(time_out)
  :: STEP(try_again)

  :: STEP(renew)
  :: STEP(protect)
  :: STEP(fail_to_protect)
  :: STEP(prime)
  :: STEP(send_heartbeat)
  :: STEP(hear_answer)
  :: STEP(record_valid)
  :: STEP(record_again)
  :: STEP(be_protected)
  :: STEP(lose_replica)
  :: STEP(record_alone)
  :: STEP(go_alone)
  :: STEP(give_up)
  :: STEP(end)
  :: STEP(boot)
  :: STEP(have_booted)

  :: STEP(follow)
#ifdef LATE_ENTER
  :: STEP(follow_late)
#endif
  :: STEP(answer_heartbeat)
  :: STEP(hear_give_up)
  :: STEP(claim)
  :: STEP(commit)
  :: STEP(take_again)
  :: STEP(be_promoted)
  :: STEP(be_useless)

  :: STEP(rest)
  :: STEP(follow_again)
  :: STEP(restart)
  :: STEP(resume)
  :: STEP(start)
  :: STEP(have_started)

  :: STEP(arrive)
  :: STEP(arrive_late)
  :: STEP(lose_qemu)
  od
}

inline begin() {
#ifdef LATE_ENTER
  generations = 0;
#endif
  record.term = 1;
  record.generation = 0;
  record.holder = 0;
  record.valid = false;
  since_drift = DRIFT_PERIOD;
  begin_host(0, alone, vm, LEASE);
  begin_host(1, waiting, nothing, 0)
}

inline begin_host(i, p, c, ticks) {
  h[i].phase = p;
  h[i].copy = c;
  h[i].lease = ticks;
  h[i].generation = 0;
  h[i].since = 0;
  h[i].read_fresh = false;
  forget(h[i].call);
  h[i].outcome = unknown;
  forget(h[i].late);
  h[i].heartbeat.generation = 0;
  h[i].heartbeat.age = 0;
  h[i].answer.generation = 0;
  h[i].answer.age = 0;
  h[i].enter = 0;
#ifdef LATE_ENTER
  h[i].late_enter = 0;
#endif
  h[i].gave_up = 0
}

#ifdef RECOVERY
/*
 * --- protected again
 * -----------------------------------------------------------------------------------------------------
 */

/*
 * PROTECTED AGAIN: from each state that can be reached, if faults stop, the administrator starts what has
 * stopped, and each agent does the step that its situation asks for, the VM ends up protected. Unless its
 * last copy is gone; and that is so only after a QEMU has died. This runs as one indivisible step and then
 * goes back to the first state, so it adds no states.
 */
#define ROUNDS 60

#define replica_phase(i) (h[i].phase == standby || h[i].phase == resting || h[i].phase == claiming \
  || h[i].phase == taking_over)
#define replica_of(i) (replica_phase(OTHER(i)) && h[OTHER(i)].phase != taking_over \
  && h[OTHER(i)].generation == h[i].generation)
#define all_is_well(i) (h[i].phase == protected && h[i].copy == vm && h[i].lease > 0 \
  && record.holder == i && record.valid && record.generation == h[i].generation \
  && h[OTHER(i)].phase == standby && replica_of(i) && h[OTHER(i)].copy == replica)
#define can_take_over(i) (h[i].copy == replica && record.holder == OTHER(i) && record.valid \
  && replica_phase(i) && h[i].generation == record.generation)
#define vm_exists (h[record.holder].copy == vm || h[record.holder].copy == replica \
  || can_take_over(OTHER(record.holder)))

#define DO(condition, name) \
  if \
  :: (condition) -> printf(SENTENCE(host %d: name\n), i); name(i) \
  :: else \
  fi

inline recover(i) {
  DO(h[i].copy == lost && record.holder == i && may_time_out(i), time_out);
  DO(h[i].copy == lost && may_give_up(i), give_up);
  DO(may_end(i), end);
  DO(h[i].copy == lost && (replica_phase(i) || h[i].phase == going_alone), stop);
  DO(may_arrive(i), arrive);
  DO(may_be_protected(i), be_protected);
  DO(may_go_alone(i), go_alone);
  DO(may_be_promoted(i), be_promoted);
  DO(may_have_started(i), have_started);
  DO(may_try_again(i), try_again);
  DO(h[i].phase == stopped, restart);
  DO(may_follow_again(i), follow_again);
  DO(may_start(i), start);
  DO(may_record_alone(i), record_alone);
  DO(may_take_again(i), take_again);

  DO(h[i].phase == alone || h[i].phase == protecting, renew);
  DO(h[i].phase == alone && h[OTHER(i)].phase == waiting, protect);
  DO(h[i].phase == protecting && !replica_of(i)
    && (h[OTHER(i)].phase != waiting || h[i].enter != h[i].generation), fail_to_protect);
  DO(h[i].phase == protecting && replica_of(i) && h[OTHER(i)].copy != nothing, fail_to_protect);
  DO(may_prime(i), prime);
  DO(leans_on_peer(i) && (!replica_of(i) || h[i].phase == resuming || h[i].phase == rerecording),
    lose_replica);
  DO(leans_on_peer(i) && h[OTHER(i)].copy != replica, lose_replica);
  DO(may_send_heartbeat(i), send_heartbeat);
  DO(may_hear_answer(i), hear_answer);
  DO(may_record_valid(i), record_valid);

  DO(may_follow(i), follow);
  DO(may_answer_heartbeat(i) && leans_on_peer(OTHER(i)), answer_heartbeat);
  DO(h[i].phase == standby && !leans_on_peer(OTHER(i)) && h[OTHER(i)].phase != protecting, claim);
  DO(h[i].phase == standby && h[OTHER(i)].generation != h[i].generation, claim);
  DO(may_commit(i), commit)
}

byte rounds;
byte who;

proctype recovery() {
  do
  :: d_step {
       true ->
       printf("faults stop\n");
       assert(vm_exists || qemu_lost);
       do
       :: !vm_exists -> break
       :: rounds == ROUNDS || all_is_well(0) || all_is_well(1) -> break
       :: else ->
          for (who : 0 .. 1) {
            recover(who)
          }
          if
          :: rounds % 2 == 1 -> /* a round trip within a tick */
             tick(0);
             tick(1)
          :: else
          fi;
          rounds++
       od;
       assert(all_is_well(0) || all_is_well(1) || rounds == 0);
       qemu_lost = false;
       rounds = 0;
       who = 0;
       begin()
     }
  od
}
#endif

init {
  atomic {
    begin();
    run clocks();
    run host(0);
    run host(1);
#ifdef RECOVERY
    run recovery()
#endif
  }
}

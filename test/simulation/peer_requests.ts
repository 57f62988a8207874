/** What src/agent/peer_requests.ts does: the decisions say whether, and the agent does it. */
import type { Request } from "../../src/failover/events.ts";
import type { Agent } from "./agent.ts";
import { ProcedureError, run } from "./procedure.ts";
import * as procedures from "./procedures.ts";

export type RequestType =
  | "prepare_secondary"
  | "enter_secondary"
  | "resume_secondary"
  | "restarting"
  | "back"
  | "succeed"
  | "loaded"
  | "abandon"
  | "replica_lost"
  | "give_up";

export interface RequestBody {
  generation: number;
  reason: string;
  /** With "loaded": which one it is. */
  loads?: number;
}

export function serve(
  agent: Agent,
  type: RequestType,
  { generation, reason, loads = 0 }: RequestBody,
  answer: (error?: ProcedureError) => void,
): void {
  const accepted = (request: Request, work: () => void = answer) =>
    agent.ask(request, (refusal) => {
      if (refusal === undefined) work();
      else answer(new ProcedureError(refusal));
    });
  switch (type) {
    case "prepare_secondary":
      accepted({ type: "prepare", generation }, () =>
        run(
          procedures.prepare(agent),
          () => answer(),
          (error) => {
            agent.tell({ type: "prepare_failed", reason: error.message });
            answer(error);
          },
        ),
      );
      return;
    case "enter_secondary":
      accepted({ type: "entered", generation }, () => {
        agent.follow(generation);
        answer();
      });
      return;
    case "succeed":
      accepted({ type: "succeed", generation }, () => {
        agent.host.setRole("successor");
        answer();
      });
      return;
    case "resume_secondary":
      accepted({ type: "resume_wanted", generation });
      return;
    case "restarting":
      accepted({ type: "peer_restarts", generation });
      return;
    case "back":
      accepted({ type: "peer_is_back", generation }, () => {
        agent.world.coverage.count("replicas that were followed again");
        answer();
      });
      return;
    case "loaded":
      agent.peerLoaded?.(loads);
      break;
    case "abandon":
      agent.tell({ type: "abandoned", generation, reason });
      break;
    case "replica_lost":
      agent.tell({ type: "replica_lost", generation, reason });
      break;
    case "give_up":
      agent.tell({ type: "peer_gave_up", generation, reason });
      break;
  }
  answer();
}

/** Asks a running agent, and checks what it answers. */
import { askAgent } from "../host/agent_http.ts";
import { checkedAs } from "../host/json.ts";
import { type AgentStatus, agentStatus, commandAnswer } from "./status.ts";

/**
 * The status of the agent at `api`: http://ADDRESS:PORT, or unix:/PATH. Throws an Error if none answers, or
 * something that is no agent of this version.
 */
export async function readStatus(api: string, timeoutMs: number): Promise<AgentStatus> {
  const { json } = await askAgent(api, "/v1/status", { timeoutMs });
  return checkedAs(agentStatus, json, `${api} answers as no agent of this version`);
}

/**
 * Has the agent on the unix socket `socket` carry out POST `path`. Returns the state afterwards in words.
 * Throws an Error that says why the command was not carried out.
 */
export async function carryOut(socket: string, path: string, timeoutMs: number): Promise<string> {
  const advice = "run this as root on the agent's host, with --socket if agent.socket differs";
  const { json } = await askAgent(`unix:${socket}`, path, { method: "POST", timeoutMs, advice });
  const answer = checkedAs(commandAnswer, json, `${socket} answers as no agent of this version`);
  if ("error" in answer) throw new Error(answer.error);
  return answer.now;
}

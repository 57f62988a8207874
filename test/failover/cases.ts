/** All cases: state, event, and what is to come of it. */
import { HOLDER } from "./cases/holder.ts";
import { REPLICA } from "./cases/replica.ts";
import { REQUESTS } from "./cases/requests.ts";
import { START } from "./cases/start.ts";
import type { Case } from "./states.ts";

export const CASES: readonly Case[] = [...REQUESTS, ...START, ...HOLDER, ...REPLICA];

/** The checks of the code that need no test: name, command. `scripts/test --quick` leaves out those whose program is missing. */
export const CHECKS: readonly (readonly [string, readonly string[]])[] = [
  ["lint (biome)", ["biome", "check", "--error-on-warnings", "."]],
  ["types (tsc)", ["npm", "run", "--silent", "typecheck"]],
];

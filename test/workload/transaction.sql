-- pgbench's own TPC-B-like transaction, and a numbered row: its client knows which transactions were
-- acknowledged.
\set aid random(1, 100000)
\set delta random(-5000, 5000)
\set id :id + 1
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
SELECT abalance FROM pgbench_accounts WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = 1 + :client_id;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (1 + :client_id, 1, :aid, :delta, CURRENT_TIMESTAMP);
INSERT INTO acknowledged (client, id) VALUES (:client_id, :id);
END;

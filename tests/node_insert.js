// Inserts jobs with the npm package `pg`, one transaction for each line of standard input, which is JSON such as
// {"user_id": "alice", "kind": "submit-order", "payload": {"order": 7}, "rollback": false}. Writes a line for each that has ended: the
// job's id.
const { Client } = require("pg");
const readline = require("readline");

(async () => {
  const client = new Client();
  await client.connect();
  // made only now: lines that are read before somebody waits for them are lost
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const job = JSON.parse(line);
    await client.query("BEGIN");
    const { rows } = await client.query(
      "INSERT INTO archibald.jobs (user_id, kind, payload) VALUES ($1, $2, $3) RETURNING id",
      [job.user_id, job.kind, job.payload],
    );
    await client.query(job.rollback ? "ROLLBACK" : "COMMIT");
    console.log(rows[0].id);
  }
  await client.end();
})();

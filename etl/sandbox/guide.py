"""The page at the sandbox's root: its paths, as commands to copy."""

from datetime import datetime

from etl.sandbox.world import World

GUIDE = """\
The result-archiver sandbox: simulated runs behind the vendor's API.
It is {now} here, and there are {count} runs.

Results     curl '{url}/api/result/RUN_ID?apiKey=sandbox-key'
            The key sandbox-execute-key needs &read_token=TOKEN, too.
Run lists   curl {url}/sandbox/runs.txt      or runs.csv, runs.json, runs.jsonl
            Save one, and: result-archiver track --from FILE
New run     curl -X POST '{url}/api/plan/PLAN_ID/execute?apiKey=sandbox-key'
            It is over after a few minutes of the sandbox's time.
Time        curl {url}/sandbox/clock
            curl {url}/sandbox/clock -d '{{"speed": 3600}}'
            curl {url}/sandbox/clock -d '{{"now": "{now}"}}'
            Most unresolved tests are decided within ten days.
Requests    curl {url}/sandbox/requests

Plans:
{plans}
"""


def guide(url: str, world: World, now: datetime) -> str:
    """Return the page for a sandbox at `url`, as plain text."""
    plans = (f"{plan.plan_id}  {plan.application}: {plan.name}" for plan in world.plans.values())
    return GUIDE.format(
        url=url,
        now=now.isoformat(timespec="seconds"),
        count=sum(1 for _ in world.runs(now)),
        plans="\n".join(plans),
    )

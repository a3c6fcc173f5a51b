# Succeeds once this run of the bot has started its strategy: the bot writes meta.json when it
# begins to start, and status.json when it has.
set -eu
cd /home/hummingbot/data/bot
[ status.json -nt meta.json ]
grep -q '"strategy_running": true' status.json

# Runs before SIGTERM is sent. Hummingbot handles it only when its strategy runs; sent before that it is lost on process 1,
# and the bot would trade on until it is killed, with its orders open. The mask is of the signals that a process handles;
# SIGTERM is bit 14.
until grep -q '^SigCgt:.*[4-7c-f]...$' /proc/1/status; do
  sleep 1
done

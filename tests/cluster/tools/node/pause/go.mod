// The program that holds a pod's network namespace open.
module torpor-node-pause

go 1.26.0

#!/usr/bin/env bash
# Writes the secrets of deploy/compose.yaml into deploy/secrets, each with a password of its own. What is there stays.
#
# Only their folder keeps others of this host out: the containers read the files under accounts of their own.
set -euo pipefail
umask 077
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p secrets
chmod 700 secrets

password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

put() { # NAME TEXT
    if [ -e "secrets/$1" ]; then return; fi
    printf '%s\n' "$2" >"secrets/$1"
    chmod 444 "secrets/$1"
    echo "deploy/secrets/$1"
}

put postgres_password "$(password)"
put cdc_password "$(password)"
put grafana_password "$(password)"
put dsn "host=database dbname=shop user=cdc password=$(cat secrets/cdc_password)"

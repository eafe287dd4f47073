#!/bin/bash
# A role and a database of its own for the keynet server and for MLflow.
#
# PostgreSQL's image runs it once, when the data directory is made. Run again, it changes nothing but the passwords.
set -euo pipefail

create() {
    local name=$1 password=$2
    # psql quotes both: a password may hold anything.
    psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
        --set name="$name" --set password="$password" <<'SQL'
SELECT format('CREATE ROLE %I LOGIN', :'name')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
}

create keynet "${KEYNET_DATABASE_PASSWORD:?must be set}"
create mlflow "${MLFLOW_DATABASE_PASSWORD:?must be set}"

"""A page about a tenant: how many rows its database holds."""

import os
from pathlib import Path

import psycopg
import streamlit as st


def database():
    return psycopg.connect(
        host=os.environ["DATABASE_HOST"],
        port=os.environ["DATABASE_PORT"],
        dbname=os.environ["DATABASE_NAME"],
        user=os.environ["DATABASE_USER"],
        password=Path(os.environ["DATABASE_PASSWORD_FILE"]).read_text(),
        connect_timeout=5,
    )


st.title("Trades")
try:
    with database() as connection:
        tables = connection.execute(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = 'public' ORDER BY 1"
        ).fetchall()
        counts = {
            name: connection.execute(psycopg.sql.SQL("SELECT count(*) FROM {}").format(psycopg.sql.Identifier(name)))
            .fetchone()[0]
            for (name,) in tables
        }
    st.table(counts)
except psycopg.Error as error:
    st.error(f"The database does not answer: {error}")

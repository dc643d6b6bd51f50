-- Two tables for the example of deploy/compose.yaml, and rows that the service does not see: they are older than its slot.

CREATE TABLE IF NOT EXISTS public.users (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL,
    __is_active__ boolean NOT NULL DEFAULT true,
    created timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS public.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id bigint NOT NULL REFERENCES public.users,
    total numeric(12, 2) NOT NULL,
    placed timestamptz NOT NULL DEFAULT now()
);

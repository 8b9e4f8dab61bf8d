-- A database from before the migrations were folded into the files of migrations/: its schema is the same, so what is recorded of it is
-- replaced. `memoryctl migrate apply` runs this where the whole former set was applied (docs/decisions/0032).
BEGIN;
SET LOCAL lock_timeout = '5s';

-- The two differences: a constraint that was added without a look at the rows that were there, and one that pg_dump wrote in other words
-- than it was given in, so that a restored copy differed from its original. Where somebody changed the schema, it stays as it is.
DO $$
BEGIN
    ALTER TABLE memory_vectors VALIDATE CONSTRAINT memory_vectors_error_class;
    ALTER TABLE audit_tiles DROP CONSTRAINT audit_tiles_place,
        ADD CONSTRAINT audit_tiles_place CHECK (level >= 0 AND level <= 7 AND tile >= 0);
EXCEPTION WHEN check_violation OR undefined_object THEN
    RAISE WARNING 'the schema is not the one that its migrations made (%): run memoryctl migrate drift', SQLERRM;
END $$;

-- The former set, with the SHA-256 of each file; a second one of a file is what it had while it still granted rights.
WITH gone AS (
    DELETE FROM schema_migrations s USING (VALUES
        ('001_create_memory_schema', 'ff5faecbeae2288c6cf66860d598f89db6205a8a8b4301e784fcb7f6211ab545'),
        ('001_create_memory_schema', '20f9cea621b4a190e7b084b891f58c15a602c3e4c876774596a07c49d38cf0d1'),
        ('002_enhance_memory_vectors', 'd9310c5f64af81a9ea7ebdb5fd16d1eb6f0c003735d4ab88f0c668a43fa5bc07'),
        ('003_audit_log', '6e5d6117d42892b1d73d7738643b1bedbf48ee11569c28f5eb546d62fc18f831'),
        ('003_audit_log', 'eb34c3b83f0252341eda8591b3d5ee71fa511794d609065b0ee500f8e04c140a'),
        ('004_governance', '9c8f5f95118627deab087708b16268e14f2116b8c69f08ec35bb568bc1497e7c'),
        ('005_row_security', 'd4ab9857fda4de1b412b9acc38fc84088e98a7e0649927a7c8335c23aaa20292'),
        ('005_row_security', 'fb4b403e015c367331b6ac80d60aa068f430edeb3b1b7f7a7bc7874027d37a02'),
        ('006_audit_keys', '3170212a45ced0be1ca9e5e3b7b705407c02329585b15e9213523d8528ae7769'),
        ('006_audit_keys', '510b812343a932c583aa8554e61c21e7982b8d6284d0e1b634035c9d2f9207c0'),
        ('007_operations', '8ad34ba4d3460116fd33d2c3bfb4307f43ecffdee1c24fa6ecb77aa393c555f6'),
        ('007_operations', '61a9acfcff5376f77b433267603816a93fc87d53c1244d30c275381fc520987d'),
        ('008_checkpoints', 'dcaa0f104112670added910b8c40f2c05d3f968e0d6a303347dc770fe29c5536'),
        ('008_checkpoints', '152b48bd02730fe70cf3d506b3238668361e91c42adcb5346ac5dbce611be76d'),
        ('009_nodes_by_id', 'ad8788f193ddd083ff3bb705b41654b2b904eb3aab8885cba8da52aba4a63142'),
        ('010_keyword_statistics', '341297737ab32c8faab3b78958c8af1baa0c455b812c89b4ea2112e5ee398ad8'),
        ('011_generations', '35e221d197b017b6b7ae53de0d367d8d9e6aca7a2c934f07006bda9c1367130c'),
        ('012_indexing_jobs', '6b26b56ddac84a4dd33ab91d4971a45c105dad3d6a9845dc64d13c095e88adb0'),
        ('012_indexing_jobs', '2336b6717282c63430db3d47eacf59c38319c16b235d16471ef53f2548bfcd82'),
        ('015_freeze', '80b060d6191a901b9201e1059d9d824e759fcefd72ea282209543197f34e0cd7'),
        ('015_freeze', '66ff3b3009917e2f4985a32deea6c26eea6775116780f3f2b29b26998125a769'),
        ('016_embedding_ids', 'f60fb3f5a6257a2f652d87021077dd6ccb549fe6c24d4d6342392b26a3793558'),
        ('017_artifacts', '329b02c4ab48f8009150ed12eaf89e1d701b8a18a6d5b670752fee0e240ec857'),
        ('017_artifacts', '84c2c17d0f258a0b8c571410da1adf6e8833279563455a9cb50de0c6e5de6599'),
        ('018_archive', '96c2bb0e09cb8a7493cd588d6cd33a424caf0dd876e0c531c65da82787fd520b'),
        ('018_archive', 'dc7ce4fd34aab040cb521e3b3ff542057cf4e58e543a87bafc0cd0a39540cd33'),
        ('020_index_rounds', 'eb5dbfa1464d011400f0cfbda0336b1b00b812e8383496bd3d71faf220f8f91b'),
        ('020_index_rounds', 'adef60fb08c3c4ac693566ee27f96b71fc1ee0a9e8c27945c020622a09550377'),
        ('021_log_authority', '4894fd46a5fab2490657d1d369b4977cec7cf09687b1fa97e1361edec45de739'),
        ('024_principals', '009a39bef1a105c84a98544e8a5b2d093b0bf99888711b110915b6d0aca77f91'),
        ('025_copies_of_bytes', 'a2c3cb86e0522eb8be70b932f7dc154b127f3e21728adc7e94a95e35a25de1d4')
    ) former(version, checksum)
    WHERE s.version = former.version AND coalesce(s.checksum, former.checksum) = former.checksum
    RETURNING s.applied_at
)
INSERT INTO schema_migrations (version, applied_at)
SELECT version, (SELECT max(applied_at) FROM gone)
FROM unnest(ARRAY['001_create_memory_schema', '002_enhance_memory_vectors',
                  '003_seal_audit_log', '004_govern_and_operate', '005_isolate_tenants']) version
ON CONFLICT DO NOTHING;
COMMIT;
